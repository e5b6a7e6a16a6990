"""Batches that one process claims together and records together: what is wrong with one costs the others nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.protection.guard import Believed
from sender.engine.together import Together
from sender.model import ACCEPTED, Push, Rejected
from sender.policy.outcomes import INTERNAL_ERROR
from sender.policy.pace import SMALL
from sender.settings import Settings
from sender.store import batches, ledger
from sender.store.database import Database, Transaction
from sender.store.devices import Gone
from tests.integration.engine import Engine, engine_on, token_of

SIZE = 6


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


@pytest.fixture
def campaign(engine: Engine) -> list[int]:
    """A campaign of six devices with a batch each, which are queued."""
    engine.add_devices(SIZE)
    engine.enqueue(batch_size=1)
    engine.start()
    return list(engine.queue)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def hold(step: Together[Any, Any], size: int, until: Callable[[], bool] = lambda: True) -> threading.Thread:
    """Keep a step busy until so many wait for it, who are the next group, and something else has come true."""

    def together(items: Sequence[object]) -> list[object]:
        wait_until(lambda: len(step._waiting) == size and until())
        return [object()]

    thread = threading.Thread(target=step.do, args=(None,), kwargs={"together": together, "alone": lambda _: None})
    thread.start()
    wait_until(lambda: step._busy)
    return thread


def send_together(
    engine: Engine, batch_ids: Sequence[int], *, recorded: int | None = None, until: Callable[[], bool] = lambda: True
) -> list[dict[str, int | str] | BaseException]:
    """Send batches that are claimed in one group, of which so many (None: all) are recorded in one group, when
    something has come true."""
    with ThreadPoolExecutor(max_workers=len(batch_ids)) as threads:
        holding = [hold(engine.runtime.recording, len(batch_ids) if recorded is None else recorded, until)]
        holding.append(hold(engine.runtime.claiming, len(batch_ids)))
        sent: list[Future[dict[str, int | str]]] = [threads.submit(send_batch, engine.runtime, id) for id in batch_ids]
        results = [each.exception(30) or each.result() for each in sent]
        for thread in holding:
            thread.join(30)
    return results


def noted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """How many items each call of a function of the store was for."""
    sizes: list[int] = []
    real = getattr(module, name)

    def note(transaction: object, items: Sequence[object]) -> Any:
        sizes.append(len(items))
        return real(transaction, items)

    monkeypatch.setattr(module, name, note)
    return sizes


def test_batches_of_the_same_moment_are_claimed_and_recorded_together(
    engine: Engine, campaign: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed = noted(monkeypatch, batches, "claim_together")
    recorded = noted(monkeypatch, ledger, "record_sent")
    assert send_together(engine, campaign) == [{"sent": 1}] * SIZE
    assert (claimed, recorded) == ([SIZE], [SIZE])
    engine.sweep()
    report = engine.report()
    assert (report.finished, report.sent) == (True, SIZE)
    assert set(engine.received.values()) == {1}
    assert engine.rows("SELECT DISTINCT state, epoch, owner, sent, finished_at IS NULL FROM {s}.batches") == [
        ("done", 1, None, 1, False)
    ]
    assert engine.rows("SELECT DISTINCT status, attempts, outcome, reason FROM {s}.deliveries") == [
        (200, 1, "sent", None)
    ]


def test_a_batch_that_the_ledger_refuses_does_not_keep_its_neighbours_from_being_recorded(
    engine: Engine, campaign: list[int]
) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute("ALTER TABLE {s}.deliveries ADD CONSTRAINT poison CHECK (device_id <> 2) NOT VALID")
    results = send_together(engine, campaign)
    assert results.count({"sent": 1}) == SIZE - 1
    engine.sweep()
    report = engine.report()
    assert (report.finished, report.sent, report.failed) == (True, SIZE - 1, 1)
    assert engine.rows("SELECT device_ids, reasons FROM {s}.batches WHERE failed > 0") == [([2], {INTERNAL_ERROR: 1})]
    assert set(engine.received.values()) == {1}


def test_a_batch_that_cannot_be_loaded_does_not_keep_its_neighbours_from_being_sent(
    engine: Engine, campaign: list[int]
) -> None:
    engine.enqueue("odd", batch_size=SIZE)
    engine.start()
    (odd,) = engine.queue[SIZE:]
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET push_type = 'of another version' WHERE key = 'odd'")
    results = send_together(engine, [*campaign, odd], recorded=SIZE)
    assert results[:SIZE] == [{"sent": 1}] * SIZE
    assert isinstance(results[SIZE], ValueError)
    assert engine.rows("SELECT id, state, failures, epoch FROM {s}.batches WHERE state <> 'done'") == [
        (odd, "open", 1, 0)
    ]
    assert engine.report().sent == SIZE


def test_a_message_that_comes_twice_in_one_group_is_sent_once(engine: Engine, campaign: list[int]) -> None:
    results = send_together(engine, [*campaign, *campaign], recorded=SIZE)
    assert results.count({"sent": 1}) == results.count({"skipped": "not open"}) == SIZE
    assert set(engine.received.values()) == {1}


def test_a_batch_that_somebody_holds_is_waited_for_by_itself(engine: Engine, campaign: list[int]) -> None:
    held, *free = campaign
    with ThreadPoolExecutor(max_workers=1) as threads:
        with engine.database.transaction() as other:
            other.execute("SELECT FROM {s}.batches WHERE id = %s FOR UPDATE", (held,))
            sending = threads.submit(send_together, engine, campaign, recorded=SIZE - 1)
            wait_until(lambda: engine.rows("SELECT count(*) FROM {s}.batches WHERE state = 'done'") == [(len(free),)])
            assert not sending.done()
        assert sending.result(30) == [{"sent": 1}] * SIZE


def test_a_paused_campaign_is_not_claimed_with_the_others(engine: Engine, campaign: list[int]) -> None:
    engine.enqueue("paused", batch_size=SIZE)
    engine.start()
    paused = engine.queue[-1]
    engine.sender.campaigns.pause("paused")
    results = send_together(engine, [paused, *campaign], recorded=SIZE)
    assert results == [{"skipped": "not open"}] + [{"sent": 1}] * SIZE
    assert engine.rows("SELECT epoch, published_at FROM {s}.batches WHERE id = %s", (paused,)) == [(0, None)]


def test_a_claim_that_was_lost_says_what_it_sent_and_its_neighbours_are_recorded(
    engine: Engine, campaign: list[int]
) -> None:
    lost, taken_back = campaign[0], threading.Event()
    with ThreadPoolExecutor(max_workers=1) as threads:
        sending = threads.submit(send_together, engine, campaign, until=taken_back.is_set)
        wait_until(lambda: len(engine.received) == SIZE)
        with engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.batches SET state = 'open', owner = NULL WHERE id = %s", (lost,))
            assert batches.claim(transaction, lost) is not None
        taken_back.set()
        assert sending.result(30) == [{"sent": 1, "fenced": 1}] + [{"sent": 1}] * (SIZE - 1)
    assert engine.rows("SELECT state, epoch, sent FROM {s}.batches WHERE id = %s", (lost,)) == [("claimed", 2, 1)]
    assert engine.outcomes() == {"sent": SIZE}


def test_however_many_large_batches_are_claimed_at_a_time_few_are_sent_at_a_time(engine: Engine) -> None:
    most, size = engine.settings.worker_threads, SMALL + 1
    sending, peak, go = set[int](), [0], threading.Event()
    engine.add_devices((most + 2) * size)
    engine.enqueue(batch_size=size)
    engine.start()
    real = engine.runtime.issue

    def issue(credential: Any, pushes: Any, lease: Any) -> Any:
        sending.add(lease.claim.batch_id)
        peak[0] = max(peak[0], len(sending))
        assert go.wait(20)
        sending.discard(lease.claim.batch_id)
        return real(credential, pushes, lease)

    engine.runtime.issue = issue  # type: ignore[method-assign]
    with ThreadPoolExecutor(max_workers=most + 2) as threads:
        sent = [threads.submit(send_batch, engine.runtime, id) for id in engine.queue]
        wait_until(lambda: engine.runtime.leases.held == most + 2 and len(sending) == most)
        go.set()
        assert [each.result(30) for each in sent] == [{"sent": size}] * (most + 2)
    assert peak == [most]


def test_what_is_not_plain_is_recorded_by_itself(
    engine: Engine, campaign: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = noted(monkeypatch, ledger, "record_sent")
    busy = Rejected(status=503, reason="ServiceUnavailable")

    def answer(push: Push) -> object:
        return busy if int(push.token, 16) == 1 else ACCEPTED

    engine.answer(answer)  # type: ignore[arg-type]
    results = send_together(engine, campaign, recorded=SIZE - 1)
    assert results == [{"retrying": 1}] + [{"sent": 1}] * (SIZE - 1)
    assert recorded == [SIZE - 1]


def test_410s_that_waited_for_a_verdict_are_believed_when_a_group_brings_it(
    engine: Engine, campaign: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = noted(monkeypatch, ledger, "record_sent")
    waited = Gone(
        device_id=1,
        token=token_of(1),
        environment="production",
        registered_at=None,
        timestamp=None,
        loaded_at=datetime.now(UTC),
        reason="Unregistered",
        apns_id=uuid4(),
    )
    monkeypatch.setattr(engine.runtime.guard, "rule", lambda *_: Believed((), (waited,)))
    send_together(engine, campaign)
    assert recorded == [SIZE]
    assert engine.states() == {"active": SIZE - 1, "invalid": 1}


def test_what_is_sent_at_most_once_is_recorded_by_itself_and_its_intents_go(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = noted(monkeypatch, ledger, "record_sent")
    engine.add_devices(SIZE)
    engine.enqueue(batch_size=1, delivery="at_most_once")
    engine.run()
    assert engine.outcomes() == {"sent": SIZE}
    assert engine.rows("SELECT FROM {s}.intents") == []
    assert recorded == []


def test_a_group_whose_commit_was_not_heard_of_is_counted_once(
    engine: Engine, campaign: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ledger.record_sent

    def commits_unheard(transaction: Any, sent: Any) -> Any:
        real(transaction, sent)
        transaction.connection.commit()
        raise psycopg.OperationalError("the connection was lost")

    monkeypatch.setattr(ledger, "record_sent", commits_unheard)
    assert send_together(engine, campaign) == [{"fenced": 1}] * SIZE
    engine.sweep()
    report = engine.report()
    assert (report.finished, report.sent) == (True, SIZE)


def test_groups_of_two_processes_that_want_the_same_batches_share_them(database: Database, engine: Engine) -> None:
    engine.add_devices(64)
    engine.enqueue(batch_size=1)
    engine.start()
    ids, begin = [id for (id,) in engine.rows("SELECT id FROM {s}.batches ORDER BY id")], threading.Barrier(2)
    assert len(ids) == 64

    def claim(order: Sequence[int]) -> set[int]:
        begin.wait(20)
        with database.transaction() as transaction:
            return {claim.batch_id for claim in batches.claim_together(transaction, order)[0] if claim is not None}

    with ThreadPoolExecutor(max_workers=2) as threads:
        mine, theirs = threads.map(claim, (ids, ids[::-1]))
    assert mine.isdisjoint(theirs)
    assert mine | theirs <= set(ids)
    assert engine.rows("SELECT count(*), max(epoch) FROM {s}.batches WHERE state = 'claimed'") == [
        (len(mine | theirs), 1)
    ]


@pytest.mark.parametrize("direct", [True, False])
def test_statements_travel_together_where_postgresql_itself_answers_and_one_by_one_through_a_pooler(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    if not direct:  # the number of its process is another one than the connection was told
        monkeypatch.setattr(psycopg.ConnectionInfo, "backend_pid", -1)
    statuses: list[bool] = []
    real = batches.claim_together

    def claim_together(transaction: Transaction, ids: Sequence[int]) -> Any:
        statuses.append(transaction.connection.info.pipeline_status == psycopg.pq.PipelineStatus.ON)
        return real(transaction, ids)

    monkeypatch.setattr(batches, "claim_together", claim_together)
    engine.add_devices(3)
    engine.enqueue(batch_size=1)
    engine.run()
    assert statuses == [direct] * 3
    assert engine.outcomes() == {"sent": 3}


def test_what_a_pipelined_transaction_did_before_an_error_is_rolled_back(database: Database) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero), database.transaction(pipelined=True) as transaction:
        transaction.execute("INSERT INTO {s}.pulses (name) VALUES ('first')")
        transaction.execute("SELECT 1 / 0")
    with database.transaction() as transaction:
        assert transaction.rows("SELECT FROM {s}.pulses") == []
