"""Where two features meet: what one of them leaves behind must not keep the other, or the campaign, from its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from unittest import mock
from uuid import uuid4

import psycopg
import pytest

from sender.apns.pool import RECALLED
from sender.audience.canary import Canary
from sender.client import Sender
from sender.engine import sweep
from sender.engine.delivery import send_batch
from sender.engine.protection.healing import Healing
from sender.model import ACCEPTED, NotProcessed, Push, Rejected
from sender.policy.guard import Counts
from sender.policy.pace import batch_size
from sender.settings import Settings
from sender.store import batches, breakers, campaigns, cut, devices, lifecycle, sending, trials
from sender.store.batches import Claim
from sender.store.breakers import Opening
from sender.store.database import Database, Transaction
from tests.integration.engine import BUNDLE, Engine, ScriptedClient, engine_on, token_of

BAD_TOKEN = Rejected(status=400, reason="BadDeviceToken")
BUSY = Rejected(status=503, reason="Shutdown")
GONE = Rejected(status=410, reason="Unregistered", timestamp=datetime(2026, 6, 1, tzinfo=UTC))


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def number(push: Push) -> int:
    return int(push.token, 16)


def refuse_ledger_rows(engine: Engine, device_id: int) -> None:
    """Have PostgreSQL refuse a device's row of the ledger, for ever."""
    with engine.database.transaction() as transaction:
        transaction.execute(
            f"ALTER TABLE {{s}}.deliveries ADD CONSTRAINT poison CHECK (device_id <> {device_id}) NOT VALID"
        )


def test_a_retry_that_the_ledger_takes_in_no_way_does_not_keep_the_campaign_open(engine: Engine) -> None:
    engine.add_devices(3)
    engine.answer(lambda push: BUSY)
    engine.enqueue(batch_size=3)
    refuse_ledger_rows(engine, 2)
    engine.start()
    engine.work()
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.sweep()
    engine.run(rounds=5)
    assert engine.rows("SELECT device_id FROM {s}.retries") == []
    report = engine.report()
    assert (report.finished, report.sent, report.failed) == (True, 2, 1)


def test_a_poisoned_retry_that_the_ledger_does_not_take_either_does_not_keep_the_campaign_open(
    engine: Engine,
) -> None:
    engine.add_devices(2)
    engine.answer(lambda push: BUSY if number(push) == 2 else ACCEPTED)
    engine.enqueue(batch_size=2)
    refuse_ledger_rows(engine, 2)
    engine.start()
    engine.work()
    engine.bring_forward()
    engine.sweep()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET failures = 100 WHERE state = 'open'")
    engine.run(rounds=5)
    report = engine.report()
    assert (report.finished, report.sent, report.failed) == (True, 1, 1)
    assert engine.rows("SELECT FROM {s}.retries") == []


def test_a_cancelled_campaign_that_cannot_be_ended_does_not_keep_the_others_from_it(engine: Engine) -> None:
    engine.add_devices(4)
    engine.enqueue("bad")
    engine.start()
    refuse_ledger_rows(engine, 2)
    engine.sender.campaigns.cancel("bad")
    engine.queue.clear()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET state = 'invalid' WHERE id = 2")
    engine.enqueue("good", batch_size=4)
    engine.run(rounds=5)
    assert engine.report("good").state == "completed"
    report = engine.report("bad")
    assert (report.finished, report.cancelled, report.failed) == (True, 3, 1)


def test_a_trip_between_the_two_steps_of_a_resume_does_not_leave_a_campaign_that_runs_and_sends_nothing(
    engine: Engine,
) -> None:
    engine.add_devices(30)
    engine.enqueue(batch_size=10)
    engine.start()
    (campaign_id,) = engine.rows("SELECT id FROM {s}.campaigns")[0]
    send_batch(engine.runtime, engine.queue.pop(0))
    engine.sender.campaigns.pause("hello")
    real = campaigns._move

    def late(*args: object, **options: object) -> object:
        with engine.database.transaction() as transaction:  # a worker whose answers came when the campaign was paused
            assert trials.trip(transaction, campaign_id, "production")
            assert not lifecycle.pause(transaction, campaign_id, "tripped")
        return real(*args, **options)  # type: ignore[arg-type]

    with mock.patch.object(campaigns, "_move", late):
        engine.sender.campaigns.resume("hello")
    assert engine.rows("SELECT state, resumed FROM {s}.trials") == [("trial", True)]
    engine.run()
    assert engine.report().state == "completed"


def test_a_kind_that_turns_while_another_of_the_same_batch_is_issued_is_not_moved_by_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.sender.apps.set_healing(BUNDLE, True)
    engine.add_devices(20)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET environment = 'sandbox' WHERE id > 10")
    engine.apns.sandbox = ScriptedClient(lambda push: ACCEPTED)
    turns = []
    real = Healing.turn

    def turn(self: Healing, claim: object, plan: object, *rest: object) -> None:
        turns.append(rest)
        if len(turns) == 3:  # the second environment's: others have just learned of the first
            record = self._record(claim, "production")  # type: ignore[arg-type]
            record.note(moved=200, results=200)
        real(self, claim, plan, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Healing, "turn", turn)
    engine.enqueue(batch_size=20)
    engine.run()
    assert engine.outcomes() == {"sent": 20}
    assert {number(push) for push in engine.apns.client.pushes} == set(range(1, 11))
    assert dict(engine.rows("SELECT environment, count(*) FROM {s}.devices GROUP BY 1")) == {
        "production": 10,
        "sandbox": 10,
    }
    assert token_of(1) in engine.received


# --- nobody waits for what somebody else holds ----------------------------------------------------------------------


def sweep_beside(engine: Engine, statement: str) -> None:
    """Sweep and tick while a transaction of somebody else holds what a statement locks."""
    with engine.database.transaction() as other:
        other.execute(statement)
        done = threading.Event()

        def go() -> None:
            engine.sweep()
            engine.start()
            done.set()

        threading.Thread(target=go, daemon=True).start()
        in_time = done.wait(20)
    assert in_time, "the sweep waits for the other transaction"
    done.wait(60)


def test_a_campaign_whose_row_is_held_does_not_hold_up_the_sweep_of_the_others(engine: Engine) -> None:
    engine.add_devices(12)
    engine.answer(lambda push: BUSY if number(push) == 1 else ACCEPTED)
    engine.enqueue("held", batch_size=4)
    engine.enqueue("tried", canary=Canary(count=3))
    engine.start()
    engine.work()
    engine.bring_forward()
    engine.answer(lambda push: ACCEPTED)
    engine.enqueue("free", batch_size=4)
    with engine.database.transaction() as transaction:
        (held,) = transaction.execute("SELECT id FROM {s}.campaigns WHERE key = 'held'").fetchone() or (0,)
        cut.insert(transaction, held, "first", [[1, 2]])  # and one that failed too often
        transaction.execute("UPDATE {s}.batches SET failures = 100 WHERE state = 'open'")
    sweep_beside(engine, "SELECT FROM {s}.campaigns WHERE key IN ('held', 'tried') FOR UPDATE")
    assert engine.report("free").state == "running"
    engine.run()
    assert [engine.report(key).state for key in ("held", "tried", "free")] == ["completed"] * 3
    assert engine.rows("SELECT count(*), outcome FROM {s}.deliveries GROUP BY outcome") == [(36, "sent")]


def test_a_device_that_the_application_holds_does_not_hold_up_the_sweep(engine: Engine) -> None:
    engine.add_devices(20, registered_at=datetime(2026, 1, 1, tzinfo=UTC))
    engine.answer(lambda push: GONE if number(push) == 1 else ACCEPTED)
    engine.enqueue(batch_size=20)
    engine.start()
    engine.work()
    assert engine.rows("SELECT device_id FROM {s}.staged") == [(1,)]
    sweep_beside(engine, "SELECT FROM {s}.devices WHERE id = 1 FOR UPDATE")
    engine.run()
    assert engine.report().state == "completed"
    assert engine.states() == {"active": 19, "invalid": 1}


def test_retries_of_a_slow_campaign_are_each_in_the_batch_that_has_them(engine: Engine) -> None:
    engine.add_devices(7)
    engine.answer(lambda push: BUSY)
    engine.enqueue(batch_size=7)
    engine.start()
    engine.work()
    engine.bring_forward()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET batch_size = 3")
        assert cut.gather_retries(transaction, most=100, size_at=batch_size) == 7
    assert engine.rows("SELECT size FROM {s}.batches WHERE kind = 'retry' ORDER BY id") == [(3,), (3,), (1,)]
    assert engine.rows(
        "SELECT count(*) FROM {s}.retries r JOIN {s}.batches b ON b.id = r.batch_id AND r.device_id = ANY(b.device_ids)"
    ) == [(7,)]


def test_many_retries_of_a_slow_campaign_are_gathered_as_they_are_sent_and_keep_no_other_waiting(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cut, "MOST_GATHERED", 4)
    monkeypatch.setattr(sweep, "MOST_RETRIES", 6)
    engine.add_devices(6)
    engine.answer(lambda push: BUSY)
    for key in ("slow", "quick"):
        engine.enqueue(key, batch_size=6)
    engine.start()
    engine.work()
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET batch_size = 1 WHERE key = 'slow'")
    gathered = "SELECT c.key, count(*) FROM {s}.retries r JOIN {s}.campaigns c ON c.id = r.campaign_id " + (
        "WHERE r.batch_id IS NOT NULL GROUP BY c.key"
    )
    engine.sweep()
    assert dict(engine.rows(gathered)) == {"slow": 3, "quick": 3}
    engine.sweep()
    assert dict(engine.rows(gathered)) == {"slow": 4, "quick": 6}
    engine.run(rounds=5)
    assert engine.outcomes() == {"sent": 12}


@pytest.mark.parametrize(
    "fault", [ZeroDivisionError, psycopg.errors.DeadlockDetected, psycopg.errors.InsufficientPrivilege]
)
def test_a_step_of_the_sweep_that_breaks_does_not_keep_it_from_the_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fault: type[Exception]
) -> None:
    engine.add_devices(3)
    engine.answer(lambda push: BUSY)
    engine.enqueue(batch_size=3)
    engine.start()
    engine.work()
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()

    def breaks(*_: object) -> None:
        raise fault

    for step in ("part_suspected", "end_open", "canary.advance"):
        monkeypatch.setattr(f"sender.engine.sweep.{step}", breaks)
    engine.run(rounds=5)
    assert engine.report().state == "completed"


def test_a_probe_that_was_recalled_is_given_back_and_does_not_count_as_failed(engine: Engine) -> None:
    with engine.database.transaction() as transaction:
        credential = sending.credentials(transaction, 1)["production"].identity
        breakers.trip(transaction, credential, Opening(cause="cannot connect", chance=0.0, scale=0.0))
    owner = uuid4()
    assert engine.runtime.breakers.begin_probe(credential, owner)
    engine.runtime.breakers.end_probe(credential, NotProcessed(cause=RECALLED))
    assert engine.rows("SELECT state, trips, cause FROM {s}.breakers") == [("open", 1, "cannot connect")]
    assert engine.runtime.breakers.begin_probe(credential, owner)


# --- the guard and what goes wrong beside it ------------------------------------------------------------------------


def test_a_trip_that_was_rolled_back_with_its_transaction_comes_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(4000, registered_at=datetime(2026, 1, 1, tzinfo=UTC))
    engine.answer(lambda push: ACCEPTED if number(push) <= 2000 else BAD_TOKEN if number(push) % 2 else GONE)
    real = devices.quarantine
    failures: list[int] = []

    def fail_at_the_trip(transaction: Transaction, *rest: Any) -> int:
        tripped = transaction.execute("SELECT FROM {s}.trials WHERE state = 'tripped'").fetchone() is not None
        if tripped and not failures:
            failures.append(1)
            raise psycopg.errors.DeadlockDetected("with somebody else")
        return real(transaction, *rest)

    monkeypatch.setattr(devices, "quarantine", fail_at_the_trip)
    engine.enqueue(batch_size=200)
    for _ in range(20):
        engine.start()
        if not failures:
            send_batch(engine.runtime, engine.queue.pop(0))
    assert failures
    assert engine.report().state == "paused"
    assert engine.rows("SELECT state FROM {s}.trials") == [("tripped",)]


def test_a_late_answer_frees_nothing_that_a_later_claim_has_outstanding(engine: Engine) -> None:
    engine.add_devices(600)
    engine.enqueue(batch_size=600)
    engine.start()

    def claimed() -> Claim:
        with engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.batches SET state = 'open', owner = NULL")
            claim = batches.claim(transaction, engine.queue[0])
        assert claim is not None
        return claim

    def reserve(claim: Claim) -> int:
        with engine.database.transaction() as transaction:
            return trials.reserve(transaction, claim, "production", wanted=600, most=500).pushes

    late = claimed()
    assert reserve(late) == 500
    second = claimed()
    assert reserve(second) == 500
    with engine.database.transaction() as transaction:
        trials.add(transaction, late, "production", Counts(accepted=1), probed=0)
    assert reserve(second) == 0
