"""Breakers and paces in PostgreSQL, and what a worker does about them: nothing is lost, charged or sent in a storm."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from sender.apns.health import Health
from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.protection import watching, window
from sender.engine.protection.breaker import Breakers
from sender.engine.runtime import Runtime
from sender.model import ACCEPTED, Answer, Environment, NotProcessed, Push, Rejected, Unknown
from sender.policy.breaker import CALM_AFTER, FLOOR, PROVIDER_TOKEN_HOLD, STALE_AFTER
from sender.policy.states import BreakerState
from sender.settings import Settings
from sender.store import apps, batches, breakers
from sender.store.breakers import Breaker, Opening
from sender.store.database import Database
from tests.integration.engine import BUNDLE, Engine, ScriptedClients, engine_on

PRODUCTION = "key:TEAM123456/KEY1234567:production"
SANDBOX = "key:TEAM123456/KEY1234567:sandbox"

HEALTHY = Health(
    connections=1, draining=0, in_flight=0, backlog=0, stream_limit=1000, down=False, failures_in_a_row=0, last_cause=""
)
DOWN = replace(
    HEALTHY,
    connections=0,
    down=True,
    failures_in_a_row=3,
    last_cause="it refused the connection",
    counts={"failures": 3},
)


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as made:
        yield made


def opening(seconds: float = 60.0, cause: str = "cannot connect") -> Opening:
    return Opening(cause=cause, chance=1.0, scale=0.0, at_least=seconds)


def state_of(engine: Engine, identity: str = PRODUCTION) -> Breaker:
    with engine.database.transaction() as transaction:
        return breakers.read(transaction, [identity]).get(identity, Breaker(credential=identity))


def do(engine: Engine, move: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with engine.database.transaction() as transaction:
        return move(transaction, *args, **options)


def age(engine: Engine, seconds: float) -> None:
    """Have everything that a breaker remembers be so long ago."""
    do(
        engine,
        lambda transaction: transaction.execute(
            "UPDATE {s}.breakers SET since = since - make_interval(secs => %(s)s), until = until - "
            "make_interval(secs => %(s)s), paced_at = paced_at - make_interval(secs => %(s)s), "
            "slowed_at = slowed_at - make_interval(secs => %(s)s)",
            {"s": seconds},
        ),
    )


# --- the moves --------------------------------------------------------------------------------------------------------


def test_a_breaker_opens_once_however_many_workers_see_the_trouble(engine: Engine) -> None:
    opened = [do(engine, breakers.trip, PRODUCTION, opening(cause=f"seen by {n}")) for n in range(3)]
    assert [found is not None for found in opened] == [True, False, False]
    found = state_of(engine)
    assert (found.state, found.cause, found.trips) == (BreakerState.OPEN, "seen by 0", 1)
    assert 55 < found.wait <= 60


def test_openings_in_a_row_last_longer_and_a_quiet_hour_forgives_them(engine: Engine) -> None:
    waits = []
    for _ in range(4):
        do(engine, breakers.trip, PRODUCTION, Opening(cause="x", chance=1.0))
        waits.append(round(state_of(engine).wait))
        age(engine, 60)
        taken = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
        do(engine, breakers.close_one, PRODUCTION, until=taken.until)
    assert waits == [5, 10, 20, 40]
    age(engine, 3700)
    do(engine, breakers.trip, PRODUCTION, Opening(cause="x", chance=1.0))
    assert round(state_of(engine).wait) == 5


def test_one_of_many_workers_gets_the_probe_and_only_when_it_is_time(engine: Engine) -> None:
    do(engine, breakers.trip, PRODUCTION, opening())
    assert do(engine, breakers.begin_probe, PRODUCTION, seconds=30) is None
    age(engine, 61)
    taken: list[Breaker | None] = []
    threads = [
        threading.Thread(target=lambda: taken.append(do(engine, breakers.begin_probe, PRODUCTION, seconds=30)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found is not None for found in taken) == 1
    assert state_of(engine).state is BreakerState.HALF_OPEN


def test_a_probe_whose_worker_died_goes_to_another_and_the_dead_ones_answer_counts_no_more(engine: Engine) -> None:
    do(engine, breakers.trip, PRODUCTION, opening())
    age(engine, 61)
    dead = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
    assert do(engine, breakers.begin_probe, PRODUCTION, seconds=30) is None
    age(engine, 31)
    second = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
    assert second is not None
    assert not do(engine, breakers.close_one, PRODUCTION, until=dead.until)
    assert do(engine, breakers.fail_probe, PRODUCTION, opening(), dead.until) is None
    do(engine, breakers.give_back_probe, PRODUCTION, dead.until)
    assert state_of(engine).state is BreakerState.HALF_OPEN
    assert do(engine, breakers.close_one, PRODUCTION, until=second.until)


def test_a_hold_that_apns_asked_for_outlasts_what_was_there(engine: Engine) -> None:
    do(engine, breakers.trip, PRODUCTION, opening(5))
    do(engine, breakers.hold, PRODUCTION, opening(1200, cause="TooManyProviderTokenUpdates"))
    do(engine, breakers.hold, PRODUCTION, opening(3, cause="TooManyProviderTokenUpdates"))
    found = state_of(engine)
    assert 1190 < found.wait <= 1200
    assert found.trips == 1


# --- the pace ---------------------------------------------------------------------------------------------------------


def test_a_pace_is_halved_at_most_once_a_second_over_all_workers(engine: Engine) -> None:
    slowed = [do(engine, breakers.slow_down, PRODUCTION, measured=1000.0, cause="503") for _ in range(4)]
    assert [found is not None for found in slowed] == [True, False, False, False]
    assert state_of(engine).pace == 500
    age(engine, 1.1)
    do(engine, breakers.slow_down, PRODUCTION, measured=500.0, cause="503")
    assert state_of(engine).pace == 250
    for _ in range(9):
        age(engine, 1.1)
        do(engine, breakers.slow_down, PRODUCTION, measured=200.0, cause="503")
    assert state_of(engine).pace == FLOOR


def test_a_pace_climbs_a_step_a_second_when_it_was_calm_for_a_while_and_goes(engine: Engine) -> None:
    do(engine, breakers.slow_down, PRODUCTION, measured=1000.0, cause="503")
    assert not do(engine, breakers.speed_up, state_of(engine))
    age(engine, 3.1)
    raised = [do(engine, breakers.speed_up, state_of(engine)) for _ in range(3)]
    assert raised == [True, False, False]
    assert state_of(engine).pace == 520
    steps = 0
    while (found := state_of(engine)).pace is not None:
        age(engine, 1.1)
        assert do(engine, breakers.speed_up, found)
        steps += 1
    assert steps == 24
    assert state_of(engine).plain


def test_a_step_up_on_what_another_worker_changed_meanwhile_is_none(engine: Engine) -> None:
    do(engine, breakers.slow_down, PRODUCTION, measured=1000.0, cause="503")
    age(engine, 3.1)
    seen = state_of(engine)
    do(engine, breakers.slow_down, PRODUCTION, measured=500.0, cause="503")
    age(engine, 3.1)
    assert not do(engine, breakers.speed_up, seen)


def test_a_pace_that_nobody_sent_with_for_a_while_is_forgotten(engine: Engine) -> None:
    do(engine, breakers.slow_down, PRODUCTION, measured=1000.0, cause="503")
    age(engine, STALE_AFTER - 5)
    assert [found.pace for found in do(engine, breakers.read_all)] == [500]
    age(engine, 6)
    assert do(engine, breakers.read_all) == []
    assert state_of(engine).plain
    do(engine, breakers.slow_down, PRODUCTION, measured=100.0, cause="503")
    assert (state_of(engine).pace, state_of(engine).pace_top) == (50, 100)


def test_a_rest_is_not_forgotten_however_long_nobody_sends(engine: Engine) -> None:
    do(engine, breakers.slow_down, PRODUCTION, measured=1000.0, cause="503")
    do(engine, breakers.trip, PRODUCTION, replace(opening(), measured=1000.0))
    age(engine, 2 * STALE_AFTER)
    [found] = do(engine, breakers.read_all)
    assert (found.state, found.pace_top) == (BreakerState.OPEN, 1000)


def test_after_a_rest_the_pace_starts_low_and_doubles(engine: Engine) -> None:
    do(engine, breakers.trip, PRODUCTION, replace(opening(), measured=4000.0))
    age(engine, 61)
    taken = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
    do(engine, breakers.close_one, PRODUCTION, until=taken.until)
    paces = []
    for _ in range(9):
        paces.append(state_of(engine).pace)
        age(engine, 1.1)
        do(engine, breakers.speed_up, state_of(engine))
    assert paces == [10, 20, 40, 80, 160, 320, 640, 1280, 1360]


# --- a worker with a breaker ------------------------------------------------------------------------------------------


def test_an_open_breaker_sends_nothing_and_leaves_the_deliveries_as_they_are(engine: Engine) -> None:
    engine.add_devices(300)
    engine.enqueue(batch_size=100)
    do(engine, breakers.trip, PRODUCTION, opening(60))
    engine.start()
    engine.work()
    assert not engine.apns.client.pushes
    assert engine.rows("SELECT count(*) FROM {s}.retries") == [(0,)]
    [(waiting, first, last)] = engine.rows(
        "SELECT count(*), min(due_at - now()), max(due_at - now()) FROM {s}.batches WHERE state = 'open'"
    )
    assert waiting == 3
    assert timedelta(seconds=50) < first <= last <= timedelta(seconds=61)
    engine.sweep()
    assert engine.work() == []  # nothing is claimed again before its time


def test_the_first_answer_of_a_probe_lets_everything_go_on(engine: Engine) -> None:
    engine.add_devices(30)
    engine.enqueue(batch_size=10)
    do(engine, breakers.trip, PRODUCTION, opening(60))
    engine.start()
    engine.work()
    engine.bring_forward()
    seen: list[tuple[int, BreakerState]] = []

    def script(push: Push) -> Answer:
        seen.append((len(engine.apns.client.pushes), state_of(engine).state))
        return ACCEPTED

    engine.answer(script)
    engine.run()
    assert seen[0] == (1, BreakerState.HALF_OPEN)  # alone
    assert {state for _, state in seen[1:]} == {BreakerState.CLOSED}
    assert engine.outcomes() == {"sent": 30}
    assert Counter(engine.received.values()) == {1: 30}


@pytest.mark.parametrize(
    "bad",
    [
        NotProcessed(cause="connect: refused"),
        NotProcessed(cause="refused"),
        Rejected(status=503, reason="ServiceUnavailable"),
        Unknown(cause="timeout"),
    ],
    ids=str,
)
def test_a_probe_that_fails_opens_it_again_for_longer_after_one_push(engine: Engine, bad: Answer) -> None:
    engine.add_devices(30)
    engine.enqueue(batch_size=10)
    do(engine, breakers.trip, PRODUCTION, Opening(cause="x", chance=1.0))
    age(engine, 6)
    engine.start()
    engine.answer(lambda push: bad)
    engine.work()
    assert len(engine.apns.client.pushes) == 1
    found = state_of(engine)
    assert (found.state, found.trips) == (BreakerState.OPEN, 2)
    assert 4 < found.wait <= 10
    engine.sweep()
    assert engine.work() == []
    assert sum(engine.outcomes().values()) == 0


@pytest.mark.parametrize("nothing", [NotProcessed(cause="goaway: Shutdown"), Unknown(cause="closed")], ids=str)
def test_a_probe_that_says_nothing_is_followed_by_another_at_once(engine: Engine, nothing: Answer) -> None:
    engine.add_devices(3)
    engine.enqueue()
    do(engine, breakers.trip, PRODUCTION, Opening(cause="x", chance=1.0))
    age(engine, 6)
    engine.start()
    seen: list[BreakerState] = []

    def script(push: Push) -> Answer:
        seen.append(state_of(engine).state)
        return nothing if len(seen) == 1 else ACCEPTED

    engine.answer(script)
    engine.work()
    assert seen[:2] == [BreakerState.HALF_OPEN] * 2
    assert state_of(engine).closed
    assert state_of(engine).trips == 1


def test_probes_that_say_nothing_time_and_again_are_no_storm(engine: Engine) -> None:
    engine.add_devices(50)
    engine.enqueue()
    do(engine, breakers.trip, PRODUCTION, Opening(cause="x", chance=1.0))
    age(engine, 6)
    engine.start()
    engine.answer(lambda push: NotProcessed(cause="goaway: NO_ERROR"))  # to whoever connects
    engine.work()
    assert len(engine.apns.client.pushes) == 2
    found = state_of(engine)
    assert (found.state, found.trips) == (BreakerState.OPEN, 1)
    assert found.wait > 0


@pytest.mark.parametrize(("times", "openings"), [(1, 1), (0, 2)])
def test_a_probe_to_a_device_that_is_throttled_once_more_lengthens_no_rest(
    engine: Engine, times: int, openings: int
) -> None:
    engine.add_devices(2)
    do(
        engine,
        lambda t: t.execute("UPDATE {s}.devices SET blocklisted_times = %s, blocklisted_until = now()", (times,)),
    )
    engine.enqueue(batch_size=1)
    do(engine, breakers.trip, PRODUCTION, Opening(cause="x", chance=1.0))
    age(engine, 6)
    engine.start()
    engine.answer(lambda push: Rejected(status=429, reason="TooManyRequests"))
    engine.work()
    assert len(engine.apns.client.pushes) == 1  # and the other waits
    found = state_of(engine)
    assert (found.state, found.trips) == (BreakerState.OPEN, openings)
    assert found.wait > 0


def test_a_probe_to_a_dead_device_closes_the_breaker(engine: Engine) -> None:
    engine.add_devices(2)
    engine.enqueue(batch_size=1)
    do(engine, breakers.trip, PRODUCTION, opening(60))
    age(engine, 61)
    engine.start()
    engine.answer(lambda push: Rejected(status=410, reason="Unregistered"))
    engine.run()
    assert state_of(engine).closed
    assert engine.outcomes() == {"rejected": 2}


def test_no_attempt_is_charged_while_a_breaker_is_open_however_often(engine: Engine) -> None:
    engine.add_devices(20)
    engine.enqueue(batch_size=10)
    do(engine, breakers.trip, PRODUCTION, opening(60))
    engine.answer(lambda push: NotProcessed(cause="connect: refused"))
    engine.start()
    for _ in range(20):
        engine.work()
        engine.bring_forward()
        engine.sweep()
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.run()
    assert engine.rows("SELECT DISTINCT outcome, attempts FROM {s}.deliveries") == [("sent", 1)]


def test_one_environment_does_not_wait_for_the_other(engine: Engine) -> None:
    engine.add_devices(40)
    do(engine, lambda t: t.execute("UPDATE {s}.devices SET environment = 'sandbox' WHERE id %% 2 = 0", ()))
    do(engine, breakers.trip, SANDBOX, opening(600))
    engine.enqueue(batch_size=10)
    engine.run(rounds=5)
    assert engine.outcomes() == {"sent": 20}
    assert engine.report().retrying_by_reason == {"CredentialHeld": 20}
    engine.bring_forward()
    engine.run(rounds=10)
    assert engine.outcomes() == {"sent": 40}


def test_what_may_be_tried_once_only_still_waits_for_its_credential(engine: Engine) -> None:
    engine.add_devices(20)
    do(engine, lambda t: t.execute("UPDATE {s}.devices SET environment = 'sandbox' WHERE id %% 2 = 0", ()))
    do(engine, breakers.trip, SANDBOX, opening(600))
    engine.enqueue(batch_size=10, expires_in=timedelta(0))
    engine.run(rounds=3)
    assert engine.outcomes() == {"sent": 10}
    engine.bring_forward()
    engine.run(rounds=10)
    assert engine.outcomes() == {"sent": 20}


def test_a_breaker_that_opens_under_a_batch_has_the_rest_of_it_wait(engine: Engine) -> None:
    engine.add_devices(500)
    engine.enqueue(batch_size=500)
    engine.start()

    def script(push: Push) -> Answer:
        if len(engine.apns.client.pushes) == 192:
            do(engine, breakers.trip, PRODUCTION, opening(60))
            do(engine, engine.runtime.breakers.read, [PRODUCTION])
        return ACCEPTED

    engine.answer(script)
    with engine.database.transaction() as transaction:  # no slow start here
        transaction.execute(
            "INSERT INTO {s}.trials (campaign_id, environment, state) "
            "SELECT id, 'production', 'trusted' FROM {s}.campaigns"
        )
    engine.work()
    assert engine.outcomes() == {"sent": 192}
    [(left,)] = engine.rows("SELECT due_at - now() FROM {s}.batches WHERE state = 'open'")
    assert timedelta(seconds=50) < left <= timedelta(seconds=60)


def add_app_with_the_same_key(engine: Engine, bundle: str) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id) "
            "SELECT %s, environment, kind, file, team_id, key_id FROM {s}.credentials",
            (apps.add(transaction, bundle),),
        )


def test_provider_token_updates_hold_the_credential_for_twenty_minutes_in_every_app(engine: Engine) -> None:
    other = "com.example.weather"
    add_app_with_the_same_key(engine, other)
    engine.add_devices(6)
    engine.sender.devices.register(other, token="ab" * 32)
    engine.enqueue(batch_size=3)
    engine.answer(lambda push: Rejected(status=429, reason="TooManyProviderTokenUpdates"))
    engine.start()
    engine.work()
    found = state_of(engine)
    assert found.state is BreakerState.OPEN
    assert found.wait >= PROVIDER_TOKEN_HOLD * engine.settings.backoff_scale * 0.99
    assert found.cause is not None
    assert "TooManyProviderTokenUpdates" in found.cause
    refused = len(engine.apns.client.pushes)
    engine.enqueue("weather", app=other)
    engine.start()
    engine.work()
    assert len(engine.apns.client.pushes) == refused
    assert sum(engine.outcomes().values()) == 0
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.run()
    assert engine.rows("SELECT outcome, attempts, count(*) FROM {s}.deliveries GROUP BY 1, 2") == [("sent", 1, 7)]


def test_while_a_probe_waits_for_its_answer_no_other_worker_sends_anything(engine: Engine) -> None:
    engine.add_devices(6)
    engine.enqueue(batch_size=2)
    do(engine, breakers.trip, PRODUCTION, opening(5))
    age(engine, 6)
    engine.start()
    first, second, third = engine.queue
    arrived, answered = threading.Event(), threading.Event()
    elsewhere = ScriptedClients()
    other = Runtime(engine.settings, role="campaign", clients=elsewhere)  # type: ignore[arg-type]

    def script(push: Push) -> Answer:
        arrived.set()
        assert answered.wait(30)
        return ACCEPTED

    engine.answer(script)
    probing = threading.Thread(target=send_batch, args=(engine.runtime, first))
    probing.start()
    assert arrived.wait(30)
    send_batch(other, second)
    send_batch(other, third)
    assert not elsewhere.client.pushes
    assert len(engine.apns.client.pushes) == 1
    answered.set()
    probing.join()
    assert state_of(engine).closed
    engine.bring_batches_forward()
    for batch in (second, third):
        send_batch(other, batch)
    other.close()
    assert len(elsewhere.client.pushes) == 4
    assert engine.outcomes() == {"sent": 6}


def test_while_another_worker_has_the_probe_nothing_is_sent_and_when_it_died_the_next_one_goes(
    engine: Engine,
) -> None:
    engine.add_devices(20)
    engine.enqueue(batch_size=10)
    do(engine, breakers.trip, PRODUCTION, opening(5))
    age(engine, 6)
    dying = Breakers(engine.database, scale=1.0, probe_seconds=50.0)
    assert dying.begin_probe(PRODUCTION, uuid4())  # and no more was heard of it
    for _ in range(3):
        engine.start()
        engine.work()
        engine.bring_batches_forward()
    assert not engine.apns.client.pushes
    age(engine, 51)
    engine.run()
    assert engine.outcomes() == {"sent": 20}


def test_provider_token_updates_in_both_environments_of_a_batch_hold_both_credentials(engine: Engine) -> None:
    engine.add_devices(10)
    do(engine, lambda t: t.execute("UPDATE {s}.devices SET environment = 'sandbox' WHERE id %% 2 = 0", ()))
    engine.enqueue()
    engine.answer(lambda push: Rejected(status=429, reason="TooManyProviderTokenUpdates"))
    engine.start()
    engine.work()
    assert [state_of(engine, each).state for each in (PRODUCTION, SANDBOX)] == [BreakerState.OPEN] * 2


# --- the watcher ------------------------------------------------------------------------------------------------------


def look(engine: Engine, **health: Health) -> None:
    """One look of the watcher at these clients."""
    engine.apns.health = {PRODUCTION: health["production"]}
    engine.runtime._loop.loop()
    engine.runtime.watcher.look()


def test_a_worker_that_cannot_connect_opens_the_breaker_and_says_why(engine: Engine) -> None:
    look(engine, production=HEALTHY)
    look(engine, production=DOWN)
    found = state_of(engine)
    assert (found.state, found.cause) == (BreakerState.OPEN, "cannot connect: it refused the connection")
    assert engine.runtime.breakers.rests(PRODUCTION)


def test_what_a_worker_saw_before_a_breaker_closed_does_not_open_it_again(engine: Engine) -> None:
    look(engine, production=DOWN)
    age(engine, 60)
    taken = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
    do(engine, breakers.close_one, PRODUCTION, until=taken.until)  # by another worker
    look(engine, production=DOWN)
    look(engine, production=DOWN)
    assert state_of(engine).state is BreakerState.CLOSED
    assert engine.apns.revived == [PRODUCTION]  # so that what comes next is not turned away


def test_an_attempt_that_failed_while_the_breaker_closed_does_not_open_it_again(engine: Engine) -> None:
    look(engine, production=DOWN)
    age(engine, 60)
    taken = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
    do(engine, breakers.close_one, PRODUCTION, until=taken.until)  # by another worker
    look(engine, production=replace(DOWN, failures_in_a_row=4, counts={"failures": 4}))
    assert state_of(engine).state is BreakerState.CLOSED


def test_deadlines_of_what_was_sent_before_a_rest_do_not_open_it_again(engine: Engine) -> None:
    look(engine, production=HEALTHY)
    look(engine, production=replace(HEALTHY, counts={"unanswered": 64}))
    assert state_of(engine).cause == "APNs does not answer"
    age(engine, 60)
    taken = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
    do(engine, breakers.close_one, PRODUCTION, until=taken.until)
    for unanswered in (128, 192):
        look(engine, production=replace(HEALTHY, counts={"unanswered": unanswered}))
    assert state_of(engine).state is BreakerState.CLOSED
    engine.runtime.watcher._windows[PRODUCTION]._deadlines_from = 0.0  # the time of those has passed
    look(engine, production=replace(HEALTHY, counts={"unanswered": 256}))
    assert state_of(engine).state is BreakerState.OPEN


def test_orderly_goaways_and_connections_that_close_when_idle_slow_nothing(engine: Engine) -> None:
    look(engine, production=HEALTHY)
    often = {"goaways": 40, "goaway_errors": 0, "lost": 40, "broken": 1, "connects": 80}
    look(engine, production=replace(HEALTHY, counts=often, last_cause="goaway: NO_ERROR"))
    assert state_of(engine).plain
    look(engine, production=replace(HEALTHY, counts={**often, "broken": 2}))
    assert state_of(engine).pace == FLOOR  # two that broke with pushes in flight do


def close_by_probe(engine: Engine) -> None:
    """As another worker does."""
    age(engine, 60)
    taken = do(engine, breakers.begin_probe, PRODUCTION, seconds=30)
    assert do(engine, breakers.close_one, PRODUCTION, until=taken.until)


def climb_elsewhere(engine: Engine) -> None:
    """Another worker was answered for a second."""
    age(engine, 1.1)
    assert do(engine, breakers.speed_up, state_of(engine))


def later(engine: Engine, seconds: float) -> None:
    """Have what this worker remembers be so long ago."""
    window = engine.runtime.watcher._windows[PRODUCTION]
    window._connected_at -= seconds
    window._closed_at -= seconds


def test_a_host_that_cannot_connect_while_others_are_answered_stops_nobody_else(engine: Engine) -> None:
    look(engine, production=DOWN)
    close_by_probe(engine)
    failures = 3
    for _ in range(4):
        failures += 1
        look(engine, production=replace(DOWN, counts={"failures": failures}))
        assert state_of(engine).closed  # first there is a moment to find out, and then it is known
        climb_elsewhere(engine)
        later(engine, 1.0)
    later(engine, 60.0)
    look(engine, production=replace(DOWN, counts={"failures": failures + 1}))
    assert state_of(engine).closed
    look(engine, production=HEALTHY)  # it could connect again, and so it counts again
    look(engine, production=replace(DOWN, counts={"failures": 3}))
    assert state_of(engine).state is BreakerState.OPEN


def test_a_worker_that_cannot_connect_leaves_the_probe_and_the_batches_to_others_first(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(4)
    engine.enqueue(batch_size=2)
    engine.start()
    first, second = engine.queue
    elsewhere = ScriptedClients()
    elsewhere.health = {PRODUCTION: DOWN}
    other = Runtime(engine.settings, role="campaign", clients=elsewhere)  # type: ignore[arg-type]
    monkeypatch.setattr(other.breakers, "patience", lambda: 60.0)
    other._loop.loop()
    other.watcher.look()
    assert state_of(engine).state is BreakerState.OPEN
    age(engine, 60)
    standing_back = threading.Thread(target=send_batch, args=(other, first))
    standing_back.start()
    end = time.monotonic() + 30
    while not other.leases.held:
        assert time.monotonic() < end
        time.sleep(0.01)
    send_batch(engine.runtime, second)
    assert state_of(engine).closed
    assert engine.outcomes() == {"sent": 2}
    assert not elsewhere.client.pushes
    other.leases.stop_issuing()
    standing_back.join()
    other.close()


def test_a_worker_that_needs_no_connection_is_not_taken_for_one_that_cannot_connect(engine: Engine) -> None:
    look(engine, production=DOWN)
    close_by_probe(engine)
    for _ in range(2):
        look(engine, production=replace(HEALTHY, connections=0))
        climb_elsewhere(engine)
    assert not engine.runtime.watcher._windows[PRODUCTION].alone


def test_a_worker_that_cannot_connect_after_a_rest_opens_it_again_when_nobody_is_answered(engine: Engine) -> None:
    look(engine, production=DOWN)
    close_by_probe(engine)
    look(engine, production=replace(DOWN, counts={"failures": 4}))
    assert state_of(engine).closed
    later(engine, CALM_AFTER)
    look(engine, production=replace(DOWN, counts={"failures": 5}))
    found = state_of(engine)
    assert (found.state, found.trips) == (BreakerState.OPEN, 2)


def test_an_outage_that_hits_all_at_once_is_nobodys_own(engine: Engine) -> None:
    do(engine, breakers.slow_down, PRODUCTION, measured=1000.0, cause="503")
    look(engine, production=HEALTHY)
    age(engine, 3.1)
    climb_elsewhere(engine)  # what another was answered just before
    look(engine, production=DOWN)
    assert state_of(engine).state is BreakerState.OPEN


def test_a_worker_that_was_not_hit_learns_of_an_opening_within_a_second(engine: Engine) -> None:
    engine.runtime.start()
    engine.add_devices(1)
    engine.enqueue()
    engine.start()
    look(engine, production=HEALTHY)
    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, engine.queue[0])
    assert claim is not None
    with engine.runtime.leases.hold(claim):
        time.sleep(0.6)
        assert not engine.runtime.breakers.shuts(PRODUCTION)
        do(engine, breakers.trip, PRODUCTION, opening(60))
        end = time.monotonic() + 10
        while not engine.runtime.breakers.shuts(PRODUCTION):
            assert time.monotonic() < end
            time.sleep(0.05)


@pytest.mark.parametrize(("answered", "state"), [(0, BreakerState.OPEN), (1, BreakerState.CLOSED)])
def test_silence_is_noticed_however_slow_the_pace(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, answered: int, state: BreakerState
) -> None:
    now = [1000.0]
    monkeypatch.setattr(window, "time", SimpleNamespace(monotonic=lambda: now[0]))
    look(engine, production=HEALTHY)
    for passed in range(1, 9):  # a push in five seconds
        assert state_of(engine).closed
        now[0] += 5.0
        health = replace(HEALTHY, answered=answered if passed >= 4 else 0, counts={"unanswered": passed})
        look(engine, production=health)
    assert state_of(engine).state is state


def test_one_device_in_a_hundred_throttled_costs_the_others_nothing(engine: Engine) -> None:
    engine.add_devices(2000)
    engine.enqueue(batch_size=200)
    engine.answer(
        lambda push: Rejected(status=429, reason="TooManyRequests") if int(push.token, 16) % 100 == 0 else ACCEPTED
    )
    for _ in range(12):
        engine.start()
        engine.work()
        engine.sweep()
        look(engine, production=replace(HEALTHY, answered=len(engine.apns.client.pushes)))
    assert engine.outcomes() == {"sent": 1980}
    for _ in range(3):  # now nothing but the throttled ones is left, and all of them say so again
        engine.bring_forward()
        engine.sweep()
        engine.work()
        look(engine, production=replace(HEALTHY, answered=len(engine.apns.client.pushes)))
    assert state_of(engine).plain
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 2000}


def test_broad_503s_lower_the_pace_and_calm_raises_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(window, "time", SimpleNamespace(monotonic=lambda: now[0]))
    engine.add_devices(400)
    engine.enqueue(batch_size=200)
    engine.answer(
        lambda push: Rejected(status=503, reason="ServiceUnavailable") if int(push.token, 16) % 3 == 0 else ACCEPTED
    )
    look(engine, production=HEALTHY)
    engine.start()
    engine.work()
    now[0] += 0.5
    look(engine, production=replace(HEALTHY, answered=400))
    slowed = state_of(engine)
    assert slowed.pace == 400.0  # half of what it was
    assert slowed.pace_cause is not None
    assert "5xx" in slowed.pace_cause
    assert [limit.scope for limit in engine.runtime.breakers.pace(PRODUCTION)] == [f"credential:{PRODUCTION}"]
    age(engine, 3.1)
    now[0] += 0.5
    look(engine, production=replace(HEALTHY, answered=410))
    assert (state_of(engine).pace or 1e9) > slowed.pace


def test_a_lowered_pace_holds_for_every_campaign_of_the_credential(engine: Engine) -> None:
    engine.add_devices(60)
    do(engine, breakers.slow_down, PRODUCTION, measured=100.0, cause="503")
    age(engine, 1)
    engine.enqueue("one", batch_size=60)
    engine.enqueue("two", batch_size=60)
    engine.start()
    began = time.monotonic()
    engine.work()
    took = time.monotonic() - began
    assert 10 < len(engine.apns.client.pushes) <= 50 * took + 5


# --- people -----------------------------------------------------------------------------------------------------------


def test_a_person_can_close_a_breaker_and_what_waits_goes_at_once(engine: Engine) -> None:
    engine.add_devices(20)
    engine.enqueue(batch_size=10)
    do(engine, breakers.trip, PRODUCTION, opening(600))
    engine.start()
    engine.work()
    assert engine.sender.apps.breakers(BUNDLE)[Environment.PRODUCTION].state is BreakerState.OPEN
    assert engine.sender.apps.close_breaker(BUNDLE, "sandbox") == ()
    assert engine.sender.apps.close_breaker(BUNDLE) == (PRODUCTION,)
    assert engine.sender.apps.close_breaker(BUNDLE) == ()
    engine.run()
    assert engine.outcomes() == {"sent": 20}


def test_a_campaign_says_which_of_its_credentials_rests_and_why(engine: Engine) -> None:
    engine.add_devices(20)
    engine.enqueue(batch_size=10)
    engine.start()
    assert engine.report().credentials == ()
    do(engine, breakers.trip, PRODUCTION, opening(600, cause="cannot connect: no route"))
    [found] = engine.report().credentials
    assert (found.credential, found.state, found.cause) == (PRODUCTION, "open", "cannot connect: no route")
    assert found.until is not None
    assert found.until > datetime.now(UTC) + timedelta(minutes=9)
    assert "no route" in found.in_words()


def test_what_a_process_missed_while_it_stood_still_says_nothing_of_apns(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(window, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(watching, "lease_clock", lambda: now[0])
    watcher = engine.runtime.watcher

    class Closing(threading.Event):
        """Time that passes in steps; of half a second when nobody was stopped."""

        def __init__(self, *steps: tuple[float, int]) -> None:
            super().__init__()
            self.steps = list(steps)

        def wait(self, timeout: float | None = None) -> bool:
            if not self.steps:
                return True
            seconds, unanswered = self.steps.pop(0)
            now[0] += seconds
            counts["unanswered"] += unanswered
            return False

    counts: Counter[str] = Counter()
    monkeypatch.setattr(watcher, "_busy", lambda: True)
    monkeypatch.setattr(watcher, "_health", lambda: {PRODUCTION: replace(HEALTHY, counts=dict(counts))})
    watcher.run(Closing((9.0, 300), (0.5, 300), (0.5, 0), (9.0, 300), (0.5, 300), (0.5, 0)))
    assert state_of(engine).state is BreakerState.CLOSED
    assert state_of(engine).pace is None
    watcher.run(Closing((0.5, 0), (0.5, 0), (0.5, 300)))
    assert state_of(engine).state is BreakerState.OPEN
