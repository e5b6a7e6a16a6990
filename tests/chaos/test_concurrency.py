"""Everything that may happen twice at once, at once, on a real PostgreSQL: it happens once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest import mock
from uuid import uuid4

import pytest

from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.fanout import cut_campaign
from sender.engine.poison import part_suspected
from sender.engine.protection.guard import Tally
from sender.engine.recording import record
from sender.engine.results import Results
from sender.engine.sweep import end_open
from sender.engine.tick import tick
from sender.policy.guard import Counts
from sender.policy.poison import MOST_FAILURES
from sender.policy.verdict import Again
from sender.settings import Settings
from sender.store import batches, devices, intents, ledger, lifecycle, poison, trials
from sender.store.batches import Claim
from sender.store.database import Database
from sender.store.devices import Gone, Throttled
from tests.integration.campaign_rows import PAYLOAD
from tests.integration.engine import BUNDLE, Engine, engine_on, token_of
from tests.integration.machine import between

ROUNDS = 8


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def together(*steps: Callable[[], Any]) -> list[Any]:
    """Take these steps at the same moment, each on a thread of its own; their results, or the first error."""
    barrier = threading.Barrier(len(steps))

    def take(step: Callable[[], Any]) -> Any:
        barrier.wait()
        return step()

    with ThreadPoolExecutor(len(steps)) as pool:
        return [future.result() for future in [pool.submit(take, step) for step in steps]]


def in_transaction(engine: Engine, step: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    def run() -> Any:
        with engine.database.transaction() as transaction:
            return step(transaction, *arguments)

    return run


def claimed(engine: Engine, batch: int) -> Claim:
    claim: Claim | None = in_transaction(engine, batches.claim, batch)()
    assert claim is not None
    return claim


def lose(engine: Engine, claim: Claim) -> bool:
    """What sweep does for a dead worker, to the word (the tests' database is younger than a lease)."""
    taken: bool = in_transaction(engine, reclaim, claim)()
    return taken


def reclaim(transaction: Any, claim: Claim) -> bool:
    return batches.reclaim(transaction, claim.batch_id, claim.owner, 0, lease=0.0)


def record_of(claim: Claim, **results: Any) -> Callable[..., Any]:
    return lambda transaction: record(transaction, claim, Results(**results), scale=1.0)


def assert_books_balance(engine: Engine, devices: int) -> None:
    """One row of the ledger a device, and counts on the batches that agree with it."""
    ((rows, distinct),) = engine.rows("SELECT count(*), count(DISTINCT device_id) FROM {s}.deliveries")
    ((counted,),) = engine.rows(
        "SELECT sum(sent + rejected + skipped + expired + unknown + cancelled + failed) FROM {s}.batches"
    )
    assert rows == distinct == counted == devices


def test_a_batch_that_eight_workers_want_is_claimed_by_one(engine: Engine) -> None:
    engine.add_devices(ROUNDS)
    engine.enqueue(batch_size=1)
    engine.start()
    for batch in engine.queue:
        claims = together(*[in_transaction(engine, batches.claim, batch)] * 8)
        assert sum(claim is not None for claim in claims) == 1


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
def test_the_same_task_twice_at_once_in_one_process_pushes_once(engine: Engine, delivery: str) -> None:
    engine.add_devices(ROUNDS * 20)
    engine.enqueue(batch_size=20, delivery=delivery)
    engine.start()
    for batch in engine.queue[:]:
        done = together(*[lambda batch=batch: send_batch(engine.runtime, batch)] * 4)
        assert sum("skipped" not in each for each in done) == 1
    assert set(engine.received.values()) == {1} and len(engine.received) == ROUNDS * 20
    assert_books_balance(engine, ROUNDS * 20)


def test_two_ticks_start_a_campaign_once(engine: Engine) -> None:
    engine.add_devices(3)
    for number in range(ROUNDS):
        engine.enqueue(f"c{number}")
        started = together(*[lambda: tick(engine.database)] * 3)
        assert sum(key == f"c{number}" for turn in started for _, key in turn) == 1


def test_an_audience_that_takes_long_to_count_is_counted_by_one_tick_while_others_go_on(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue("large")
    counted: list[list[tuple[int, str]]] = []

    def meanwhile(*_: object) -> None:
        engine.enqueue("small")
        with mock.patch.object(lifecycle, "audience_of", side_effect=real) as counts:
            counted.append(tick(engine.database))
        assert counts.call_count == 1

    real = lifecycle.audience_of
    with between(lifecycle, "audience_of", meanwhile):
        assert [key for _, key in tick(engine.database)] == ["large"]
    assert [[key for _, key in turn] for turn in counted] == [["small"]]


def test_a_campaign_whose_start_meets_midnight_is_started_by_the_next_tick(engine: Engine) -> None:
    engine.add_devices(1)
    engine.enqueue()
    real = lifecycle.due

    def before_midnight(transaction: Any) -> list[lifecycle.Due]:
        return [replace(each, today=each.today - timedelta(days=1)) for each in real(transaction)]

    with mock.patch.object(lifecycle, "due", before_midnight):
        assert tick(engine.database) == []
    assert engine.report().state == "scheduled"
    engine.run()
    assert engine.report().state == "completed"


def test_two_fan_outs_cut_every_device_once(engine: Engine) -> None:
    engine.add_devices(2000)
    engine.enqueue(batch_size=200)
    ((campaign, _),) = tick(engine.database)
    together(*[lambda: cut_campaign(engine.database, campaign, engine.publish)] * 3)
    ((cut, distinct),) = engine.rows(
        "SELECT count(*), count(DISTINCT d.id) FROM {s}.batches, unnest(device_ids) AS d(id)"
    )
    assert cut == distinct == 2000
    assert len(engine.queue) == len(set(engine.queue))


def test_a_campaign_that_is_enqueued_eight_times_at_once_exists_once(engine: Engine) -> None:
    engine.add_devices(3)

    def enqueue() -> bool:
        return engine.sender.campaigns.enqueue(BUNDLE, key="same", payload=PAYLOAD).key == "same"

    assert all(together(*[enqueue] * 8))
    assert engine.rows("SELECT count(*) FROM {s}.campaigns") == [(1,)]


def test_two_sweeps_take_a_claim_back_once_and_never_one_that_is_being_recorded(engine: Engine) -> None:
    engine.add_devices(ROUNDS)
    engine.enqueue(batch_size=1)
    engine.start()
    for batch in engine.queue:
        claim = claimed(engine, batch)
        (device,) = claim.device_ids

        def finish(claim: Claim = claim, device: int = device) -> Any:
            with engine.database.transaction() as transaction:
                return record(transaction, claim, Results(sent=[device]), scale=1.0)

        sweep = in_transaction(engine, reclaim, claim)
        first, second, recorded = together(sweep, sweep, finish)
        assert first + second + ("fenced" not in recorded) == 1
    assert_books_balance(engine, ROUNDS)


def test_what_a_dying_claim_announces_is_seen_by_the_next_one_or_not_announced(engine: Engine) -> None:
    engine.add_devices(ROUNDS * 5)
    engine.enqueue(batch_size=5, delivery="at_most_once")
    engine.start()

    def take_over(claim: Claim) -> set[int]:
        while not lose(engine, claim):
            pass
        with engine.database.transaction() as transaction:
            new = batches.claim(transaction, claim.batch_id)
            assert new is not None
            return intents.open_of(transaction, new.campaign.id, new.device_ids)

    for batch in engine.queue[:ROUNDS]:
        claim = claimed(engine, batch)
        parts = [claim.device_ids[:2], claim.device_ids[2:4], claim.device_ids[4:]]

        def issue(claim: Claim = claim, parts: Any = parts) -> set[int]:
            sent: set[int] = set()
            for part in parts:
                sent |= in_transaction(engine, intents.announce, claim, part)()
            return sent

        sent, known = together(issue, lambda claim=claim: take_over(claim))
        assert sent <= known


def test_answers_of_a_fenced_worker_and_of_its_successor_are_counted_once(engine: Engine) -> None:
    engine.add_devices(ROUNDS * 10)
    engine.enqueue(batch_size=10)
    engine.start()
    for batch in engine.queue:
        old = claimed(engine, batch)
        assert lose(engine, old)
        new = claimed(engine, batch)

        def write(claim: Claim) -> Any:
            with engine.database.transaction() as transaction:
                return record(transaction, claim, Results(sent=list(claim.device_ids)), scale=1.0)

        together(lambda old=old: write(old), lambda new=new: write(new))
    assert_books_balance(engine, ROUNDS * 10)
    engine.sweep()
    assert engine.report().finished


def test_a_late_answer_that_is_recorded_while_its_retry_is_leaves_no_retry_behind(engine: Engine) -> None:
    engine.add_devices(1)
    engine.enqueue(batch_size=1)
    engine.start()
    late = claimed(engine, engine.queue.pop())
    assert lose(engine, late)
    (device,) = late.device_ids
    again = Again(device_id=device, due_at=late.loaded_at, attempts=1, reason="Shutdown", status=503)
    in_transaction(engine, record_of(claimed(engine, late.batch_id), again=[again]))()
    engine.sweep()
    retry = claimed(engine, engine.queue.pop())
    with ThreadPoolExecutor(1) as pool, engine.database.transaction() as transaction:
        record_of(late, sent=[device])(transaction)
        recording = pool.submit(in_transaction(engine, record_of(retry, again=[again])))
        while not engine.rows("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%retries%'"):
            assert not recording.done()
        transaction.connection.commit()
        recording.result()
    assert engine.outcomes() == {"sent": 1}
    assert engine.rows("SELECT FROM {s}.retries") == []


def test_what_is_being_claimed_while_its_campaign_is_cancelled_is_not_called_cancelled_and_sent(engine: Engine) -> None:
    engine.add_devices(1)
    engine.enqueue(batch_size=1)
    engine.start()
    first = claimed(engine, engine.queue.pop())
    again = Again(device_id=first.device_ids[0], due_at=first.loaded_at, attempts=1, reason="Shutdown", status=503)
    in_transaction(engine, record_of(first, again=[again]))()
    engine.sweep()
    with engine.database.transaction() as claiming:  # a worker that stands still in the middle of it
        retry = batches.claim(claiming, engine.queue.pop())
        assert retry is not None and len(batches.targets(claiming, retry)) == 1
        engine.sender.campaigns.cancel("hello")
        end_open(engine.database)
    assert engine.outcomes() == {}
    in_transaction(engine, record_of(retry, sent=list(retry.device_ids)))()
    engine.sweep()
    assert engine.outcomes() == {"sent": 1}
    assert engine.report().finished


def test_what_a_cancelled_campaign_has_in_a_retry_is_ended_by_it_and_not_with_the_batch_it_came_from(
    engine: Engine,
) -> None:
    engine.add_devices(2)
    engine.enqueue(batch_size=2)
    engine.start()
    first = claimed(engine, engine.queue.pop())
    tried, left = first.device_ids
    again = Again(device_id=tried, due_at=first.loaded_at, attempts=1, reason="Shutdown", status=503)
    in_transaction(engine, record_of(first, again=[again], untouched=[left]))()
    engine.sweep()
    retry = claimed(engine, engine.queue.pop())
    assert retry.device_ids == (tried,)
    engine.sender.campaigns.cancel("hello")
    end_open(engine.database)
    assert engine.outcomes() == {"cancelled": 1}
    in_transaction(engine, record_of(retry, sent=[tried]))()
    engine.sweep()
    assert engine.outcomes() == {"cancelled": 1, "sent": 1}
    assert engine.report().finished


@pytest.mark.parametrize("gathered", [False, True], ids=["waits", "in a batch"])
def test_the_end_of_a_campaign_and_a_late_answer_do_not_wait_for_each_other_crosswise(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, gathered: bool
) -> None:
    engine.add_devices(1)
    engine.enqueue(batch_size=1)
    engine.start()
    late = claimed(engine, engine.queue.pop())
    assert lose(engine, late)
    again = Again(device_id=late.device_ids[0], due_at=late.loaded_at, attempts=1, reason="Shutdown", status=503)
    in_transaction(engine, record_of(claimed(engine, late.batch_id), again=[again]))()
    if gathered:
        engine.sweep()
    engine.sender.campaigns.cancel("hello")
    real = ledger.end_retries
    waits = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as pool:

        def end_retries(*arguments: Any) -> None:  # of the late answer: the ledger has it, the retries still do
            monkeypatch.setattr(ledger, "end_retries", real)
            ending.append(pool.submit(end_open, engine.database))
            while not ending[0].done() and not engine.rows(waits):
                pass
            real(*arguments)

        ending: list[Future[None]] = []
        monkeypatch.setattr(ledger, "end_retries", end_retries)
        in_transaction(engine, record_of(late, sent=list(late.device_ids)))()
        ending[0].result()
    engine.sweep()
    engine.sweep()
    assert engine.outcomes() == {"sent": 1}
    assert_books_balance(engine, 1)
    assert engine.report().finished


def test_a_late_answer_that_stands_still_does_not_hold_up_the_sweep_of_a_cancelled_campaign(engine: Engine) -> None:
    engine.add_devices(2)
    engine.enqueue(batch_size=2)
    engine.start()
    first = claimed(engine, engine.queue.pop())
    tried, also = first.device_ids
    again = [Again(device_id=id, due_at=first.loaded_at, attempts=1, reason="x", status=503) for id in (tried, also)]
    in_transaction(engine, record_of(first, again=again))()
    engine.sweep()
    engine.sender.campaigns.cancel("hello")
    with engine.database.transaction() as transaction:  # of a worker that was stopped in the middle of it
        record_of(first, sent=[tried])(transaction)
        engine.sweep()
        assert engine.report().cancelled == 0
    engine.sweep()
    assert engine.outcomes() == {"sent": 1, "cancelled": 1}
    engine.sweep()
    assert engine.report().finished


def test_many_that_wait_when_their_campaign_is_cancelled_are_ended_a_part_at_a_time(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "MOST_ENDED", 4)
    engine.add_devices(10)
    engine.enqueue(batch_size=10)
    engine.start()
    claim = claimed(engine, engine.queue.pop())
    later = claim.loaded_at + timedelta(hours=1)
    again = [Again(device_id=id, due_at=later, attempts=1, reason="Shutdown", status=503) for id in claim.device_ids]
    in_transaction(engine, record_of(claim, again=again))()
    engine.sender.campaigns.cancel("hello")
    ended = []
    for _ in range(4):
        together(lambda: end_open(engine.database), engine.sweep)
        ended.append(engine.outcomes().get("cancelled", 0))
    assert ended[0] < 10 == ended[-1]
    assert_books_balance(engine, 10)
    assert engine.report().finished


def test_a_batch_is_parted_once_though_a_fenced_worker_records_it_at_the_same_time(engine: Engine) -> None:
    engine.add_devices(ROUNDS * 6)
    engine.enqueue(batch_size=6)
    engine.start()
    for batch in engine.queue:
        old = claimed(engine, batch)
        assert lose(engine, old)
        with engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.batches SET failures = %s WHERE id = %s", (MOST_FAILURES, batch))

        def write(claim: Claim = old) -> Any:
            with engine.database.transaction() as transaction:
                return record(transaction, claim, Results(sent=list(claim.device_ids[:3])), scale=1.0)

        together(lambda: part_suspected(engine.database), lambda: part_suspected(engine.database), write)
    part_suspected(engine.database)  # what the worker held at that moment was left for the next time
    assert engine.rows("SELECT FROM {s}.batches WHERE size > 1 AND state <> 'done'") == []
    ((singles, distinct),) = engine.rows(
        "SELECT count(*), count(DISTINCT device_ids[1]) FROM {s}.batches WHERE size = 1"
    )
    assert singles == distinct
    engine.queue.clear()
    engine.bring_forward()
    engine.run()
    assert_books_balance(engine, ROUNDS * 6)
    assert engine.outcomes() == {"sent": ROUNDS * 6}


def test_a_parted_device_that_is_failed_twice_at_once_is_counted_once(engine: Engine) -> None:
    engine.add_devices(ROUNDS)
    engine.enqueue(batch_size=1)
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET failures = 100")
    for batch in engine.queue:
        parted = together(*[in_transaction(engine, poison.part, batch)] * 3)
        assert sum(sentence is not None for sentence in parted) == 1
    assert_books_balance(engine, ROUNDS)


def test_a_cancelled_campaign_is_ended_once_by_two_sweeps_and_a_worker(engine: Engine) -> None:
    engine.add_devices(ROUNDS * 5)
    engine.enqueue(batch_size=5)
    engine.start()
    claims = [claimed(engine, batch) for batch in engine.queue[:3]]
    engine.sender.campaigns.cancel("hello")

    def write() -> None:
        for claim in claims:
            with engine.database.transaction() as transaction:
                record(transaction, claim, Results(sent=list(claim.device_ids)), scale=1.0)

    together(lambda: end_open(engine.database), lambda: end_open(engine.database), write)
    engine.sweep()
    engine.sweep()
    assert engine.outcomes() == {"sent": 15, "cancelled": ROUNDS * 5 - 15}
    assert_books_balance(engine, ROUNDS * 5)
    assert engine.report().finished


def test_campaigns_that_write_to_the_same_devices_do_not_wait_for_each_other_crosswise(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(2)
    one, other = [id for (id,) in engine.rows("SELECT id FROM {s}.devices ORDER BY id")]
    both, real = threading.Barrier(2), devices.invalidate

    def invalidate(*arguments: Any) -> Any:
        found = real(*arguments)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # each has written to one of the devices, unless one waits for the other
        return found

    def writer(key: str, gone: int, throttled: int) -> Callable[[], Any]:
        engine.enqueue(key)
        engine.start()
        claim = claimed(engine, engine.queue.pop())
        results = Results(gone=[gone_of(gone)], throttled=[throttled_of(throttled)])
        return in_transaction(engine, lambda transaction: record(transaction, claim, results, scale=1.0))

    writers = [writer("hello", one, other), writer("again", other, one)]
    monkeypatch.setattr(devices, "invalidate", invalidate)
    together(*writers)  # PostgreSQL would end one of them as a deadlock
    assert engine.states() == {"invalid": 2}


def test_campaigns_whose_slow_starts_end_over_the_same_devices_do_not_wait_for_each_other_crosswise(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(2)
    one, other = [id for (id,) in engine.rows("SELECT id FROM {s}.devices ORDER BY id")]
    guard, both, real = engine.runtime.guard, threading.Barrier(2), devices.invalidate

    def invalidate(*arguments: Any) -> Any:
        found = real(*arguments)
        with suppress(threading.BrokenBarrierError):
            both.wait(0.3)  # as above
        return found

    def writer(key: str, staged: int, throttled: int) -> Callable[[], Any]:
        engine.enqueue(key)
        engine.start()
        claim = claimed(engine, engine.queue.pop())
        claim = replace(claim, campaign=replace(claim.campaign, audience=10_000))
        waits = replace(gone_of(staged), environment="production")
        in_transaction(engine, trials.stage, claim.campaign.id, [waits])()
        tallies = {"production": Tally(counts=Counts(accepted=guard.thresholds.judged))}
        return in_transaction(
            engine, record_of(claim, throttled=[throttled_of(throttled)], tallies=tallies, guard=guard)
        )

    writers = [writer("hello", one, other), writer("again", other, one)]
    monkeypatch.setattr(devices, "invalidate", invalidate)
    together(*writers)
    assert engine.states() == {"invalid": 2}
    assert engine.rows("SELECT DISTINCT state FROM {s}.trials") == [("trusted",)]


def gone_of(device_id: int) -> Gone:
    return Gone(
        device_id=device_id,
        token=token_of(device_id),
        registered_at=None,
        timestamp=None,
        loaded_at=datetime.now(UTC),
        reason="Unregistered",
        apns_id=uuid4(),
    )


def throttled_of(device_id: int) -> Throttled:
    return Throttled(device_id=device_id, until=datetime.now(UTC) + timedelta(hours=1), times=1, apns_id=uuid4())
