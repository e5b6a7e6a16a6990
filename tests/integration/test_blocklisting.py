"""TooManyRequests, clause by clause: the device rests, everything due to it waits or expires, and a success ends it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from sender.client import Sender
from sender.model import ACCEPTED, Rejected
from sender.settings import Settings
from sender.store.database import Database
from tests.integration.engine import Engine, engine_on

THROTTLED = Rejected(status=429, reason="TooManyRequests")


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    real = settings.model_copy(update={"backoff_scale": 1.0})
    with engine_on(real, database, sender) as made:
        yield made


def device(engine: Engine) -> Any:
    [row] = engine.rows("SELECT state, blocklisted_times, blocklisted_until - now() FROM {s}.devices")
    return row


def changes(engine: Engine) -> list[tuple[str, Any]]:
    return engine.rows("SELECT kind, new ->> 'times' FROM {s}.changelog ORDER BY id")


def test_each_time_in_a_row_doubles_the_rest_half_of_it_random_and_is_a_changelog_row(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: THROTTLED)
    engine.enqueue()
    engine.start()
    for times in range(1, 10):
        engine.work()
        state, counted, rest = device(engine)
        whole = min(timedelta(minutes=15) * 2 ** (times - 1), timedelta(hours=24))
        assert (state, counted) == ("blocklisted", times)
        assert whole / 2 - timedelta(minutes=1) <= rest <= whole
        engine.bring_forward()
        engine.sweep()
    assert changes(engine) == [("blocklisted", str(times)) for times in range(1, 10)]
    assert engine.rows("SELECT attempts, reason FROM {s}.retries") == [(0, "TooManyRequests")]


def test_two_rests_of_the_same_length_are_two_random_ones(engine: Engine) -> None:
    engine.add_devices(30)
    engine.answer(lambda push: THROTTLED)
    engine.enqueue()
    engine.start()
    engine.work()
    assert engine.rows("SELECT count(DISTINCT blocklisted_until) FROM {s}.devices") == [(30,)]


def test_a_rest_holds_for_every_campaign_and_each_delivers_at_its_end(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: THROTTLED)
    engine.enqueue("one")
    engine.start()
    engine.work()
    assert len(engine.apns.client.pushes) == 1
    engine.answer(lambda push: ACCEPTED)
    engine.enqueue("two")
    engine.start()
    engine.work()
    assert len(engine.apns.client.pushes) == 1  # the second did not even ask
    [(same,)] = engine.rows(
        "SELECT bool_and(r.due_at BETWEEN d.blocklisted_until - interval '1 second' AND d.blocklisted_until + "
        "interval '1 second') FROM {s}.retries r JOIN {s}.devices d ON d.id = r.device_id"
    )
    assert same
    engine.bring_forward()
    engine.run()
    assert engine.report("one").sent == engine.report("two").sent == 1


def test_what_would_be_due_after_its_expiration_is_expired_now(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: THROTTLED)
    engine.enqueue("long")
    engine.start()
    engine.work()
    engine.enqueue("short", expires_in=60)
    engine.start()
    engine.work()
    assert engine.rows("SELECT outcome, reason FROM {s}.deliveries") == [("expired", "TooManyRequests")]
    assert len(engine.apns.client.pushes) == 1
    assert engine.report("long").retrying == 1


def test_a_success_ends_it_and_the_next_rest_is_a_first_one_again(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: THROTTLED)
    engine.enqueue("one")
    engine.start()
    for _ in range(3):
        engine.work()
        engine.bring_forward()
        engine.sweep()
    engine.answer(lambda push: ACCEPTED)
    engine.run()
    assert device(engine) == ("active", 0, None)
    engine.answer(lambda push: THROTTLED)
    engine.enqueue("two")
    engine.start()
    engine.work()
    assert device(engine)[2] <= timedelta(minutes=15)
    assert changes(engine) == [
        ("blocklisted", "1"),
        ("blocklisted", "2"),
        ("blocklisted", "3"),
        ("unblocked", None),
        ("blocklisted", "1"),
    ]
