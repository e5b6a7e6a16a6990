"""What breaks the sender: batches that fail again and again, deliveries that cannot be weighed or recorded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import psycopg
import pytest

from sender.client import Sender
from sender.engine import delivery, preparing, recording
from sender.engine.delivery import send_batch
from sender.engine.sweep import Sweeper
from sender.policy.poison import MOST_FAILURES, MOST_FAILURES_ALONE
from sender.settings import Settings
from sender.store import batches
from sender.store.database import Database
from tests.integration.engine import Engine, engine_on, token_of

POISON = token_of(3)


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def rounds(engine: Engine, most: int = 60) -> None:
    """Start, work and sweep until the campaign is over; what fails is what Celery would log."""
    for _ in range(most):
        engine.start()
        while engine.queue:
            try:
                send_batch(engine.runtime, engine.queue.pop(0))
            except Exception as error:  # the poison's
                assert "poison" in str(error)
        engine.bring_forward()
        engine.sweep()
        if not engine.rows("SELECT FROM {s}.campaigns WHERE finished_at IS NULL"):
            return
    raise AssertionError("it loops")


def poison_the_making_of(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Have the push of a device fail before it is sent."""
    real = preparing.Push

    def make(made_for: str, *rest: Any) -> Any:
        if made_for == token:
            raise ZeroDivisionError(f"poison in {made_for}")
        return real(made_for, *rest)

    monkeypatch.setattr(preparing, "Push", make)


def test_a_device_that_no_push_can_be_made_for_ends_as_failed_and_the_rest_are_sent_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(10)
    engine.enqueue(batch_size=10)
    poison_the_making_of(monkeypatch, POISON)
    rounds(engine)
    assert engine.outcomes() == {"sent": 9, "failed": 1}
    assert POISON not in engine.received and set(engine.received.values()) == {1}
    report = engine.report()
    assert (report.state, report.failed, report.by_reason) == ("completed", 1, {"InternalError": 1})


def test_the_error_of_a_poisoned_device_is_kept_without_its_token(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(3)
    engine.enqueue(batch_size=3)
    poison_the_making_of(monkeypatch, POISON)
    rounds(engine)
    errors = {error for (error,) in engine.rows("SELECT error FROM {s}.batches WHERE error IS NOT NULL")}
    assert errors == {f"ZeroDivisionError: poison in {POISON[:8]}…"}
    assert engine.report().errors == {errors.pop(): 1}


def test_a_poisoned_device_that_waits_for_a_retry_takes_no_other_retry_with_it(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sender.model import ACCEPTED, Rejected

    engine.add_devices(5)
    engine.enqueue(batch_size=5)
    engine.answer(lambda push: Rejected(status=503, reason="ServiceUnavailable"))
    engine.start()
    engine.work()
    engine.answer(lambda push: ACCEPTED)
    poison_the_making_of(monkeypatch, POISON)
    rounds(engine)
    assert engine.outcomes() == {"sent": 4, "failed": 1}
    assert engine.rows("SELECT FROM {s}.retries") == []
    assert engine.report().failed == 1


def test_a_batch_goes_one_by_one_only_after_it_failed_often(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(4)
    engine.enqueue(batch_size=4)
    poison_the_making_of(monkeypatch, POISON)
    engine.start()
    (batch,) = engine.queue
    for failures in range(1, MOST_FAILURES + 1):
        with pytest.raises(ZeroDivisionError):
            send_batch(engine.runtime, batch)
        assert engine.rows("SELECT failures FROM {s}.batches") == [(failures,)]
        engine.bring_forward()
    assert send_batch(engine.runtime, batch) == {"skipped": "not open"}
    engine.sweep()
    assert engine.rows("SELECT state, size FROM {s}.batches ORDER BY id") == [("done", 4), *[("open", 1)] * 4]
    assert engine.report().pending == 4


def test_what_a_batch_failed_with_is_forgotten_when_its_devices_went_through(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(2)
    engine.enqueue(batch_size=2)
    engine.start()
    (batch,) = engine.queue
    with monkeypatch.context() as patch:
        poison_the_making_of(patch, token_of(1))
        with pytest.raises(ZeroDivisionError):
            send_batch(engine.runtime, batch)
    engine.bring_forward()

    def one_only(push: Any) -> Any:
        from sender.model import ACCEPTED, NotProcessed

        return ACCEPTED if push.token == token_of(1) else NotProcessed(cause="connect: refused")

    engine.answer(one_only)
    send_batch(engine.runtime, batch)
    assert engine.rows("SELECT state, failures FROM {s}.batches") == [("open", 0)]


# --- workers that die ------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """A worker's death: nothing of ours runs after it."""


def die_with(engine: Engine, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Have a worker die whenever it is about to push to a device."""
    real = delivery.issue

    def issue(runtime: Any, lease: Any, plan: Any) -> Any:
        if any(push.token == token for push in plan.pushes):
            raise Killed
        return real(runtime, lease, plan)

    monkeypatch.setattr(delivery, "issue", issue)


def lose_claims(engine: Engine) -> list[int]:
    """The sweep's part: what dead workers hold is taken back, a lease later. Returns those batches."""
    with engine.database.transaction() as transaction:
        held = batches.claimed(transaction)
        return [id for id, owner, beats in held if batches.reclaim(transaction, id, owner, beats, lease=0.0)]


def test_a_device_that_kills_every_worker_that_touches_it_ends_as_failed_and_the_rest_are_sent(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(12)
    engine.enqueue(batch_size=4)
    die_with(engine, monkeypatch, POISON)
    deaths = 0
    for _ in range(40):
        engine.start()
        while engine.queue:
            try:
                send_batch(engine.runtime, engine.queue.pop(0))
            except Killed:
                deaths += 1
        lose_claims(engine)
        engine.bring_forward()
        engine.sweep()
    assert deaths == MOST_FAILURES + MOST_FAILURES_ALONE
    assert engine.outcomes() == {"sent": 11, "failed": 1}
    assert set(engine.received.values()) == {1} and POISON not in engine.received
    assert engine.report().finished
    ((error,),) = engine.rows("SELECT error FROM {s}.batches WHERE failed = 1")
    assert error.startswith("WorkerLost: ")


def test_a_single_device_that_failed_is_sent_while_no_other_such_device_is(
    engine: Engine,
) -> None:
    engine.add_devices(2)
    engine.enqueue(batch_size=1)
    engine.start()
    first, second = engine.queue
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET failures = 1")
    with engine.database.transaction() as transaction:
        held = batches.claim(transaction, first)
    assert held is not None and held.suspect
    assert send_batch(engine.runtime, second) == {"skipped": "not open"}
    assert engine.rows("SELECT state, failures FROM {s}.batches WHERE id = %s", (second,)) == [("open", 1)]
    with engine.database.transaction() as transaction:
        batches.release(transaction, held)
    engine.bring_forward()
    assert send_batch(engine.runtime, second) == {"sent": 1}


def test_devices_that_died_in_the_company_of_a_poisoned_one_are_sent(engine: Engine) -> None:
    """A worker holds all batches at once, and each time the poisoned one is among them it dies with all of them."""
    engine.add_devices(12)
    engine.enqueue(batch_size=3)
    for _ in range(80):
        engine.start()
        queued, engine.queue[:] = engine.queue[:], []
        with engine.database.transaction() as transaction:
            claims = [claim for claim in (batches.claim(transaction, batch) for batch in queued) if claim is not None]
            together = [claim for claim in claims if not claim.suspect]
            suspects = [claim for claim in claims if claim.suspect]
            for claim in suspects[1:]:
                assert batches.other_suspect(transaction, claim)
            for claim in claims:
                if claim not in (together + suspects[:1]):
                    batches.release(transaction, claim)
        held = together + suspects[:1]
        if not any(3 in claim.device_ids for claim in held):
            for claim in held:
                with engine.database.transaction() as transaction:
                    batches.release(transaction, claim)
                send_batch(engine.runtime, claim.batch_id)
        lose_claims(engine)
        engine.bring_forward()
        engine.sweep()
        if engine.report().finished:
            break
    assert engine.outcomes() == {"sent": 11, "failed": 1}
    assert set(engine.received.values()) == {1} and POISON not in engine.received


def test_a_batch_that_was_lost_before_is_offered_later_and_the_first_time_at_once(engine: Engine) -> None:
    engine.add_devices(1)
    engine.enqueue()
    engine.start()
    (batch,) = engine.queue
    waits = []
    for _ in range(3):
        with engine.database.transaction() as transaction:
            assert batches.claim(transaction, batch) is not None
        before = engine.now()
        lose_claims(engine)
        waits += engine.rows("SELECT due_at >= %s FROM {s}.batches", (before,))
        engine.bring_forward()
    assert waits == [(None,), (True,), (True,)]


# --- batches that cannot be claimed ----------------------------------------------------------------------------------


def test_a_batch_whose_devices_cannot_be_loaded_does_not_come_again_and_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(6)
    with engine.database.transaction() as transaction:  # a time that Python cannot hold
        transaction.execute("UPDATE {s}.devices SET registered_at = 'infinity' WHERE token = %s", (POISON,))
    engine.enqueue(batch_size=3)
    engine.start()
    for _ in range(40):
        while engine.queue:
            with suppress(psycopg.DataError):
                send_batch(engine.runtime, engine.queue.pop(0))
        engine.bring_forward()
        engine.sweep()
    assert engine.outcomes() == {"sent": 5, "failed": 1}
    assert set(engine.received.values()) == {1}
    assert engine.report().finished


def test_one_message_too_many_counts_no_failure_twice(engine: Engine) -> None:
    engine.add_devices(1)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET registered_at = 'infinity'")
    engine.enqueue()
    engine.start()
    (batch,) = engine.queue
    for _ in range(2):
        with pytest.raises(psycopg.DataError):
            send_batch(engine.runtime, batch)
        with engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.batches SET due_at = NULL")
    assert engine.rows("SELECT failures FROM {s}.batches") == [(1,)]


# --- weighing and recording ------------------------------------------------------------------------------------------


def test_an_answer_that_cannot_be_weighed_costs_its_own_delivery_and_nothing_is_sent_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(8)
    engine.enqueue(batch_size=8)
    real = delivery.weigh

    def weigh(claim: Any, answered: Any, **given: Any) -> Any:
        if any(target.token == POISON for target, _, _ in answered):
            raise ValueError("poison")
        return real(claim, answered, **given)

    monkeypatch.setattr(delivery, "weigh", weigh)
    engine.run()
    assert engine.outcomes() == {"sent": 7, "failed": 1}
    assert set(engine.received.values()) == {1} and len(engine.received) == 8
    assert engine.rows("SELECT error FROM {s}.batches") == [("ValueError: poison",)]
    assert engine.report().by_reason == {"InternalError": 1}


def refuse_ledger_rows(engine: Engine, device_id: int, *, but: str = "") -> None:
    """Have PostgreSQL refuse a device's row of the ledger, for ever."""
    with engine.database.transaction() as transaction:
        transaction.execute(
            "ALTER TABLE {s}.deliveries ADD CONSTRAINT poison CHECK (device_id <> "
            f"{device_id} OR outcome = '{but}') NOT VALID"
        )


def test_a_result_that_the_ledger_refuses_ends_as_failed_and_the_rest_are_recorded_not_sent_again(
    engine: Engine,
) -> None:
    engine.add_devices(20)
    engine.enqueue(batch_size=20)
    refuse_ledger_rows(engine, 3, but="failed")
    engine.run()
    assert engine.outcomes() == {"sent": 19, "failed": 1}
    assert set(engine.received.values()) == {1}
    assert engine.report().failed == 1
    ((error,),) = engine.rows("SELECT error FROM {s}.batches")
    assert error.startswith("CheckViolation: ")


def test_a_delivery_that_the_ledger_takes_in_no_way_is_counted_and_nothing_loops(engine: Engine) -> None:
    engine.add_devices(5)
    engine.enqueue(batch_size=5)
    refuse_ledger_rows(engine, 3)
    engine.run()
    assert engine.outcomes() == {"sent": 4}
    assert set(engine.received.values()) == {1}
    report = engine.report()
    assert (report.finished, report.sent, report.failed) == (True, 4, 1)
    assert report.by_reason == {"InternalError": 1}
    ((error, batches_with_it),) = report.errors.items()
    assert error.startswith("CheckViolation: ") and batches_with_it == 1


def test_a_poisoned_device_that_the_ledger_does_not_take_either_is_counted_as_failed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(2)
    engine.enqueue(batch_size=2)
    refuse_ledger_rows(engine, 2)
    poison_the_making_of(monkeypatch, token_of(2))
    rounds(engine)
    report = engine.report()
    assert (report.finished, report.sent, report.failed) == (True, 1, 1)


def test_retries_and_releases_of_a_batch_are_kept_when_one_of_its_rows_is_refused(engine: Engine) -> None:
    from sender.model import ACCEPTED, NotProcessed, Rejected

    answers = {1: ACCEPTED, 2: Rejected(status=503, reason="Shutdown"), 4: NotProcessed(cause="connect: refused")}
    engine.add_devices(4)
    engine.enqueue(batch_size=4)
    engine.answer(lambda push: answers.get(int(push.token, 16), ACCEPTED))
    refuse_ledger_rows(engine, 3, but="failed")
    engine.start()
    engine.work()
    assert engine.outcomes() == {"sent": 1, "failed": 1}
    assert engine.rows("SELECT device_id FROM {s}.retries") == [(2,)]
    assert engine.rows("SELECT state FROM {s}.batches") == [("open",)]
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.sweep()
    engine.run()
    assert engine.outcomes() == {"sent": 3, "failed": 1}
    assert engine.received == {token_of(1): 1, token_of(2): 2, token_of(3): 1, token_of(4): 2}


def test_halts_that_cannot_be_written_do_not_keep_the_answers_from_being(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(3)
    engine.enqueue(batch_size=3)

    def break_halts(*_: Any, **__: Any) -> None:
        raise RuntimeError("no halts today")

    monkeypatch.setattr(recording, "_record_halts", break_halts)
    engine.run()
    assert engine.outcomes() == {"sent": 3} and set(engine.received.values()) == {1}


def test_two_sweeps_part_a_batch_once(engine: Engine) -> None:
    engine.add_devices(5)
    engine.enqueue(batch_size=5)
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET failures = %s", (MOST_FAILURES,))
    other = Sweeper()
    engine.sweep()
    other.run(engine.database, engine.settings, engine.publish, lambda: 0)
    assert engine.rows("SELECT count(*) FROM {s}.batches WHERE size = 1") == [(5,)]


def test_what_the_guard_stages_is_staged_though_a_row_of_the_batch_is_refused(engine: Engine) -> None:
    from sender.model import ACCEPTED, Rejected

    engine.add_devices(40)
    engine.enqueue(batch_size=40)
    gone = Rejected(status=410, reason="Unregistered")
    engine.answer(lambda push: gone if int(push.token, 16) <= 10 else ACCEPTED)
    refuse_ledger_rows(engine, 20, but="failed")
    with engine.database.transaction() as transaction:  # an audience that is not tiny: its start is judged
        transaction.execute("UPDATE {s}.campaigns SET audience_estimate = 10000")
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET audience_estimate = 10000, cut_devices = 10000")
    engine.work()
    assert engine.outcomes() == {"sent": 29, "rejected": 10, "failed": 1}
    assert engine.rows("SELECT count(*) FROM {s}.staged") == [(10,)]
    assert engine.states() == {"active": 40}
