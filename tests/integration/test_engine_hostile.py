"""The engine against bad moments: databases that go away between two grants, workers that come back late, campaigns
that stand in each other's way."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.fanout import MOST_OPEN
from sender.engine.recording import record, record_surely
from sender.engine.results import Results
from sender.engine.sweep import end_open
from sender.engine.tick import tick
from sender.errors import DatabaseUnavailableError
from sender.model import ACCEPTED, Answer, Push, Rejected
from sender.policy.pace import batch_size
from sender.policy.verdict import Again
from sender.settings import Settings
from sender.store import apps, batches, breakers, cut, lifecycle, limits, partitions, retention, sending
from sender.store.batches import Claim
from sender.store.breakers import Opening
from sender.store.database import Database, Transaction
from sender.store.limits import Limit
from tests.integration.engine import BUNDLE, Engine, engine_on, token_of


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def claim_of(engine: Engine, batch: int) -> Claim:
    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, batch)
    assert claim is not None
    return claim


def reclaim(engine: Engine) -> None:
    """As sweep does with a claim whose owner is gone."""
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET state = 'open', owner = NULL, published_at = NULL")


def store(engine: Engine, claim: Claim, results: Results) -> None:
    with engine.database.transaction() as transaction:
        record(transaction, claim, results, scale=1.0)


def in_thread(target: Callable[[], object], *, seconds: float) -> bool:
    """Run it beside this thread; whether it came to its end in time."""
    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def failing(error: Exception, real: Callable[..., Any], *, at: int) -> Callable[..., Any]:
    """`real`, but for its `at`-th call (from 1), which raises."""
    calls = iter(range(1, 1_000_000))

    def call(*args: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise error
        return real(*args, **options)

    return call


# --- nothing twice --------------------------------------------------------------------------------------------------


def test_what_was_issued_before_the_database_went_away_is_recorded_and_not_repeated(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(200)
    engine.enqueue(batch_size=200)
    engine.start()
    engine.sender.apps.set_rate(BUNDLE, 1000)
    away = psycopg.OperationalError("the database system is shutting down")
    monkeypatch.setattr("sender.engine.pacing.limits.take", failing(away, limits.take, at=3))
    with suppress(psycopg.OperationalError):
        engine.work()
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 200}
    assert set(engine.received.values()) == {1}


def test_a_failing_renewal_of_a_connection_does_not_lose_the_answers_that_are_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(5)
    once = {token_of(5)}

    def script(push: Push) -> Answer:
        if push.token in once:
            once.clear()
            return Rejected(status=403, reason="InvalidProviderToken")
        return ACCEPTED

    engine.answer(script)
    engine.enqueue()
    engine.start()

    def renew(_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(engine.runtime, "renew_connections", renew)
    with suppress(TimeoutError):
        engine.work()
    if engine.rows("SELECT FROM {s}.apps WHERE state = 'paused'"):
        engine.sender.apps.resume(BUNDLE)
    engine.bring_forward()
    engine.run()
    assert [engine.received[token_of(n)] for n in range(1, 5)] == [1, 1, 1, 1]


def test_a_client_that_fails_in_the_middle_of_a_batch_loses_no_answer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(200)
    engine.enqueue(batch_size=200)
    engine.start()
    looks = iter(range(1_000))

    async def ready() -> None:
        if next(looks) == 2:
            raise RuntimeError("the pool is broken")

    monkeypatch.setattr(engine.apns.client, "ready", ready)
    with suppress(RuntimeError):
        engine.work()
    assert engine.outcomes() == {"sent": 128}
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 200}
    assert set(engine.received.values()) == {1}


def test_a_batch_whose_grants_are_given_up_for_want_of_streams_does_not_come_ever_more_rarely(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(10)
    engine.enqueue(batch_size=10, rate=2000.0)
    engine.start()
    real, asleep = time.monotonic, [0.0]
    monkeypatch.setattr("sender.engine.runtime.time.monotonic", lambda: real() + asleep[0])

    async def ready() -> None:
        asleep[0] += 1.0

    monkeypatch.setattr(engine.apns.client, "ready", ready)
    for _ in range(3):
        engine.bring_forward()
        engine.sweep()
        before = engine.now()
        engine.work()
    assert not engine.received
    assert engine.rows(
        "SELECT epoch, setbacks, due_at BETWEEN %s AND now() + interval '1 second' FROM {s}.batches", (before,)
    ) == [(3, 0, True)]


@pytest.mark.parametrize(("rate", "issued"), [(2000.0, 64), (None, 100)])
def test_pushes_that_waited_for_a_stream_for_long_are_not_issued_by_a_grant_of_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, rate: float | None, issued: int
) -> None:
    engine.add_devices(100)
    engine.enqueue(batch_size=100, rate=rate)
    engine.start()
    looks, real = iter(range(1_000)), time.monotonic
    asleep = [0.0]
    monkeypatch.setattr("sender.engine.runtime.time.monotonic", lambda: real() + asleep[0])

    async def ready() -> None:
        asleep[0] += 1.0 if next(looks) == 1 else 0.0  # the streams were full for a second

    monkeypatch.setattr(engine.apns.client, "ready", ready)
    engine.work()
    assert engine.outcomes() == {"sent": issued}
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 100}
    assert set(engine.received.values()) == {1}


@pytest.mark.parametrize("reason", ["Bad\x00Reason", "Bad\ud800Reason"])
def test_a_reason_that_postgresql_cannot_hold_does_not_have_the_batch_sent_again(engine: Engine, reason: str) -> None:
    engine.add_devices(3)
    engine.answer(lambda push: Rejected(status=400, reason=reason) if push.token == token_of(1) else ACCEPTED)
    engine.enqueue()
    engine.start()
    with suppress(psycopg.Error, UnicodeError):
        engine.work()
    assert engine.outcomes() == {"sent": 2, "rejected": 1}


@pytest.mark.parametrize(
    "error",
    [psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT in a read-only transaction")],
    ids=lambda error: type(error).__name__,
)
def test_answers_outlast_a_fail_over(engine: Engine, monkeypatch: pytest.MonkeyPatch, error: psycopg.Error) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    monkeypatch.setattr("sender.engine.recording.record", failing(error, record, at=1))
    with suppress(psycopg.Error):
        engine.work()
    assert engine.outcomes() == {"sent": 3}


def test_a_worker_that_stood_still_right_after_its_claim_issues_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    real, asleep, claim = time.clock_gettime, [0.0], batches.claim_together
    monkeypatch.setattr(time, "clock_gettime", lambda clock: real(clock) + asleep[0])

    def stall(*args: Any) -> Any:
        claimed = claim(*args)
        asleep[0] += 2 * engine.settings.lease
        return claimed

    monkeypatch.setattr("sender.engine.claiming.batches.claim_together", stall)
    engine.work()
    assert not engine.received


def test_a_retry_that_is_claimed_while_a_cancel_ends_it_is_not_called_cancelled(engine: Engine) -> None:
    engine.add_devices(5)
    engine.answer(lambda push: Rejected(status=503, reason="ServiceUnavailable"))
    engine.enqueue()
    engine.start()
    engine.work()
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.sweep()
    with engine.database.transaction() as transaction:  # a claim that read the campaign before the order
        claim = batches.claim(transaction, engine.queue[0])
        assert claim is not None
        engine.sender.campaigns.cancel("hello")
        targets = batches.targets(transaction, claim)
        assert in_thread(lambda: end_open(engine.database), seconds=30)
    store(engine, claim, Results(sent=[target.device_id for target in targets]))
    engine.run()
    assert len(targets) == 5
    assert engine.outcomes() == {"sent": 5}  # else `exclude_sent` would send to them again
    assert engine.report().finished


def test_an_open_transaction_of_the_application_does_not_still_the_heartbeats(engine: Engine) -> None:
    engine.add_devices(40)
    engine.enqueue(batch_size=20)
    engine.start()
    engine.answer(lambda push: Rejected(status=429, reason="TooManyRequests"))  # its row of `devices` is written
    first, other = engine.queue
    claim = claim_of(engine, other)
    with engine.database.transaction() as application:
        application.execute("SELECT FROM {s}.devices WHERE token = %s FOR UPDATE", (token_of(1),))
        sending_it = threading.Thread(target=send_batch, args=(engine.runtime, first), daemon=True)
        sending_it.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while engine.rows(waits)[0][0] == 0:
            time.sleep(0.05)
        with engine.runtime.leases.hold(claim):
            beats = in_thread(engine.runtime.leases._beat, seconds=30)
    sending_it.join()
    assert beats


# --- nothing stuck --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_first", [True, False])
def test_a_late_acceptance_beside_a_retry_does_not_keep_the_campaign_open(engine: Engine, late_first: bool) -> None:
    engine.add_devices(1)
    engine.enqueue()
    engine.start()
    late = claim_of(engine, engine.queue[0])
    reclaim(engine)
    second = claim_of(engine, engine.queue[0])
    (device,) = second.device_ids
    again = Results(again=[Again(device_id=device, due_at=second.loaded_at, attempts=1, reason="Shutdown", status=503)])
    steps = [(late, Results(sent=[device])), (second, again)]
    for claim, results in steps if late_first else reversed(steps):
        store(engine, claim, results)
    engine.queue.clear()
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 1}
    assert engine.rows("SELECT FROM {s}.retries") == []
    assert engine.report().state == "completed"


def test_a_late_answer_whose_month_of_the_ledger_was_dropped_is_ignored_and_not_tried_for_ever(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    late = claim_of(engine, engine.queue.pop())
    reclaim(engine)
    engine.run()
    engine.runtime.stopping.hurry()  # whoever would try again gives up, instead of trying for as long as the test lasts
    with engine.database.transaction() as transaction:
        (month,) = [month for month in partitions.months(transaction, partitions.LEDGER) if not month.empty]
        assert retention.drop(transaction, month)
    with capture_logs() as logs:
        assert record_surely(engine.runtime, late, Results(sent=list(late.device_ids))) == {"fenced": 1}
    assert [log["answers"] for log in logs if log["event"] == "late_answers_ignored"] == [3]
    assert engine.report().sent == 3


def test_a_late_answer_does_not_count_again_what_retention_has_removed(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    late = claim_of(engine, engine.queue.pop())
    reclaim(engine)
    engine.run()
    with engine.database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.deliveries")
    store(engine, late, Results(sent=list(late.device_ids)))
    assert engine.outcomes() == {}
    assert engine.report().sent == 3


def test_retries_gathered_beside_a_fan_out_are_not_passed_over(engine: Engine) -> None:
    engine.add_devices(1000)
    engine.answer(lambda push: Rejected(status=503, reason="Shutdown") if push.token == token_of(1) else ACCEPTED)
    engine.enqueue(batch_size=1)
    engine.start()
    engine.work()
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    gathered, go = threading.Event(), threading.Event()

    def gather() -> None:
        with engine.database.transaction() as transaction:
            assert cut.gather_retries(transaction, most=100, size_at=batch_size) == 1
            gathered.set()
            go.wait(3)

    sweep = threading.Thread(target=gather)
    sweep.start()
    gathered.wait()
    for _ in range(3):  # cut, sent, and the low-water mark moved on
        engine.start()
        engine.work()
    go.set()
    sweep.join()
    engine.run()
    assert engine.outcomes() == {"sent": 1000}
    assert engine.report().state == "completed"


def test_a_database_that_goes_away_is_not_waited_for_once_for_each_campaign_that_starts(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(1)
    for key in ("a", "b", "c"):
        engine.enqueue(key)
    tried: list[int] = []

    def away(transaction: Transaction, campaign_id: int) -> bool:
        tried.append(campaign_id)
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(lifecycle, "starts_alone", away)
    with pytest.raises(DatabaseUnavailableError):
        engine.start()
    assert len(tried) == 1


def test_a_campaign_that_cannot_start_does_not_keep_the_others_from_it(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue("broken")
    with engine.database.transaction() as transaction:  # as another version, or a hand, may have written it
        transaction.execute("""UPDATE {s}.campaigns SET segment = '{"of": "tomorrow"}'""")
    engine.enqueue("sound")
    with suppress(Exception):
        tick(engine.database)
    assert engine.rows("SELECT state FROM {s}.campaigns WHERE key = 'sound'") == [("running",)]


def test_a_broker_that_is_away_does_not_keep_campaigns_from_their_end(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    engine.work()

    def waiting() -> int:
        raise ConnectionError("redis is away")

    with suppress(ConnectionError):
        engine.sweeper.run(engine.database, engine.settings, engine.publish, waiting)
    assert engine.rows("SELECT state FROM {s}.campaigns") == [("completed",)]


def test_batches_whose_publishing_failed_are_published_again_though_the_queue_is_busy(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(30)
    engine.enqueue(batch_size=10)

    def publish(campaign: str, ids: Sequence[int], urgent: bool) -> None:
        raise ConnectionError("redis is away")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "publish", publish)
        with pytest.raises(ConnectionError):
            engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET fanout_until = NULL")
        transaction.execute("UPDATE {s}.batches SET published_at = published_at - interval '30 seconds'")
    engine.sweeper.run(engine.database, engine.settings, engine.publish, lambda: 50)
    assert len(engine.queue) == 3


# --- nobody in the way of others ------------------------------------------------------------------------------------


def test_a_slow_campaign_holds_no_thread_while_it_waits_for_its_turn(engine: Engine) -> None:
    engine.add_devices(2)
    engine.enqueue(rate=0.01)
    engine.start()
    first, second = engine.queue
    send_batch(engine.runtime, first)
    ended = in_thread(lambda: send_batch(engine.runtime, second), seconds=30)
    engine.runtime.stop_issuing()
    assert ended
    assert engine.rows("SELECT state, due_at > now() FROM {s}.batches WHERE id = %s", (second,)) == [("open", True)]


def test_batches_are_no_larger_than_the_apps_own_limit_allows(engine: Engine) -> None:
    engine.add_devices(500)
    engine.sender.apps.set_rate(BUNDLE, 100)
    engine.enqueue(batch_size=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sender.engine.fanout.TURN", 0.2)
        engine.start()
    assert engine.rows("SELECT max(size) FROM {s}.batches") == [(5,)]


def test_due_retries_do_not_fill_the_queue(engine: Engine) -> None:
    engine.add_devices(1000)
    engine.answer(lambda push: Rejected(status=503, reason="Shutdown"))
    engine.enqueue(batch_size=1)
    while engine.rows("SELECT count(*) FROM {s}.retries")[0][0] < 1000:
        engine.start()
        engine.work()
    engine.bring_forward()
    for _ in range(10):
        engine.sweep()
    assert len(engine.queue) <= MOST_OPEN


def test_fan_outs_of_a_campaign_do_not_multiply(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SENDER_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("SENDER_DATABASE_URL", engine.database.url)
    control = importlib.import_module("tasks.control")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(control, "runtime", lambda: engine.runtime)
    monkeypatch.setattr(control, "publish", engine.publish)
    monkeypatch.setattr(control.fanout, "apply_async", lambda kwargs, **_: asked.append(kwargs))
    monkeypatch.setattr("sender.engine.fanout.TURN", 0.0)
    engine.add_devices(2000)
    engine.enqueue(batch_size=1)
    control.tick.run()
    for _ in range(3):
        with engine.database.transaction() as transaction:  # the queue is long: its next turn has not come yet
            transaction.execute("UPDATE {s}.campaigns SET fanout_until = now() - interval '1 second'")
        control.tick.run()
        turns, asked[:] = list(asked), []
        for kwargs in turns:
            control.fanout.run(**kwargs)
    assert len(asked) <= 1


def test_a_hold_on_one_environment_does_not_stop_the_cutting_for_the_other(engine: Engine) -> None:
    engine.add_devices(400)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET environment = 'sandbox' WHERE id % 10 = 0")
        app = apps.find(transaction, BUNDLE)
        assert app is not None
        sandbox = sending.credentials(transaction, app.id)["sandbox"]
        breakers.hold(transaction, sandbox.identity, Opening(cause="too many tokens", chance=1, at_least=1200))
    engine.enqueue(batch_size=20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sender.engine.fanout.MOST_OPEN", 5)
        patch.setattr("sender.engine.fanout.TURN", 0.2)
        engine.run(rounds=8)
    assert engine.outcomes() == {"sent": 360}


def test_a_hold_on_one_environment_does_not_delay_what_a_stop_left_of_the_other(engine: Engine) -> None:
    engine.add_devices(200)
    with engine.database.transaction() as transaction:
        app = apps.find(transaction, BUNDLE)
        assert app is not None
        sandbox = sending.credentials(transaction, app.id)["sandbox"]
        breakers.hold(transaction, sandbox.identity, Opening(cause="too many tokens", chance=1, at_least=1200))
    engine.enqueue(batch_size=200)
    engine.start()

    def script(push: Push) -> Answer:
        if len(engine.apns.client.pushes) == 64:
            engine.runtime.stop_issuing()
        return ACCEPTED

    engine.answer(script)
    engine.work()
    assert engine.rows("SELECT FROM {s}.batches WHERE due_at > now() + interval '2 minutes'") == []


def test_a_stopping_worker_does_not_pause_the_app_without_a_second_look(engine: Engine) -> None:
    engine.add_devices(1)
    engine.enqueue()
    engine.start()

    def script(push: Push) -> Answer:
        engine.runtime.stop_issuing()
        return Rejected(status=403, reason="InvalidProviderToken")

    engine.answer(script)
    engine.work()
    assert engine.rows("SELECT state FROM {s}.apps") == [("active",)]


# --- what goes out --------------------------------------------------------------------------------------------------


def test_the_topic_carries_the_suffix_of_the_push_type(engine: Engine) -> None:
    engine.add_devices(1)
    engine.sender.campaigns.enqueue(BUNDLE, key="ring", payload={"aps": {}, "call": 1}, push_type="voip", rate=None)
    engine.run()
    assert [push.headers.topic for push in engine.apns.client.pushes] == [f"{BUNDLE}.voip"]


# --- limits ---------------------------------------------------------------------------------------------------------


def test_a_raised_rate_counts_at_once(database: Database) -> None:
    with database.transaction() as transaction:
        assert limits.take(transaction, [Limit(scope="campaign:1", rate=0.001)], 1).granted
    with database.transaction() as transaction:
        assert limits.take(transaction, [Limit(scope="campaign:1", rate=1000.0)], 1).delay < 2


def test_a_database_clock_that_was_set_back_does_not_stop_sending(database: Database) -> None:
    limit = [Limit(scope="campaign:1", rate=1000.0)]
    with database.transaction() as transaction:
        limits.take(transaction, limit, 1)
        transaction.execute("UPDATE {s}.limits SET free_at = now() + interval '1 hour'")  # written before the step
    with database.transaction() as transaction:
        assert limits.take(transaction, limit, 1).delay < 2


def test_a_rate_of_next_to_nothing_is_no_error(database: Database) -> None:
    with database.transaction() as transaction:
        assert limits.take(transaction, [Limit(scope="campaign:1", rate=1e-300)], 1).granted
