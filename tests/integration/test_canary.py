"""The canary: a sample first, then the rest, or a stop. The figures add up all the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sender import Canary, Segment
from sender.cli.canary import canary_text
from sender.client import Sender
from sender.model import ACCEPTED, Answer, Push, Rejected
from sender.settings import Settings
from sender.store.database import Database
from tests.integration.engine import Engine, engine_on


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        engine.add_devices(500)
        yield engine


def step(engine: Engine) -> Any:
    """Start, cut, work, sweep, once; the report."""
    engine.start()
    engine.work()
    engine.sweep()
    return engine.report()


def until_paused(engine: Engine) -> Any:
    for _ in range(10):
        report = step(engine)
        if report.state == "paused":
            return report
    raise AssertionError(report)


def bad(push: Push) -> Answer:
    return Rejected(status=400, reason="BadDeviceToken")


def test_a_sample_of_exactly_that_size_is_sent_first_and_then_all_the_others_once(engine: Engine) -> None:
    engine.enqueue(canary=Canary(count=20))
    engine.start()
    engine.work()
    assert len(engine.received) == 20
    report = engine.report()
    assert (report.audience, report.pending, report.canary_state) == (500, 480, "sending")
    engine.run()
    report = engine.report()
    assert (report.state, report.sent, report.canary_state) == ("completed", 500, "passed")
    assert set(engine.received.values()) == {1}
    assert report.canary["size"] == 20
    assert "20 of 20 answers" in report.canary["result"]


def test_the_same_key_draws_the_same_sample_and_another_key_another(engine: Engine) -> None:
    samples = []
    for key in ("a", "b"):
        engine.enqueue(key, canary=Canary(share=0.1, hold=True))
        engine.start()
        engine.work()
        samples.append(set(engine.received))
        engine.apns.client.pushes.clear()
    assert samples[0] != samples[1]
    assert [len(sample) for sample in samples] == [50, 50]
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET state = 'cancelled', finished_at = now(), key = key || '-old'")
    engine.enqueue("a", canary=Canary(share=0.1, hold=True))
    engine.start()
    engine.work()
    assert set(engine.received) == samples[0]


def test_a_held_canary_waits_for_a_person_and_goes_on_with_the_rest(engine: Engine) -> None:
    engine.enqueue(canary=Canary(count=50, hold=True))
    report = until_paused(engine)
    assert (report.sent, report.pending, report.canary_state, report.held) == (50, 450, "waiting", True)
    assert report.audience_is_estimate
    assert canary_text(report) == "canary: waits for a person: 50 of 50 answers of the sample were accepted"
    engine.sender.campaigns.resume("hello")
    assert canary_text(engine.report()) == "canary: resumed by a person: the rest follows"
    engine.run()
    assert canary_text(engine.report()).startswith("canary: passed: 50 of 50")
    assert engine.report().sent == 500
    assert set(engine.received.values()) == {1}


def test_more_refusals_than_a_threshold_allows_stop_the_campaign_with_the_figures(engine: Engine) -> None:
    tokens: list[str] = []

    def some(push: Push) -> Answer:
        tokens.append(push.token)
        return Rejected(status=410, reason="Unregistered") if len(tokens) % 20 == 0 else ACCEPTED

    engine.answer(some)
    engine.enqueue(canary=Canary(count=100, thresholds={"Unregistered": 0.02}))
    report = until_paused(engine)
    assert report.canary_state == "stopped"
    assert report.state_actor == "system"
    assert "Unregistered 5 of 100 answers (5 %), at most 2 % allowed" in report.state_reason
    assert len(tokens) == 100
    engine.sender.campaigns.resume("hello")
    engine.run()
    assert engine.report().state == "completed"
    assert set(engine.received.values()) == {1}
    assert len(engine.received) == 500


def test_dead_tokens_do_not_stop_a_canary_that_names_no_threshold(engine: Engine) -> None:
    engine.answer(lambda push: Rejected(status=410, reason="Unregistered") if int(push.token, 16) % 2 else ACCEPTED)
    engine.enqueue(canary=Canary(count=50))
    engine.run()
    assert engine.report().state == "completed"


def test_a_canary_of_nothing_but_bad_tokens_costs_the_sample_only(engine: Engine) -> None:
    engine.answer(bad)
    engine.enqueue(canary=Canary(count=40))
    report = until_paused(engine)
    assert len(engine.received) == 40
    assert report.canary_state in ("stopped", "sending")
    engine.sweep()
    assert engine.report().canary_state == "stopped"
    assert "invalid" not in engine.states()


def test_blocklisted_devices_do_not_hold_a_canary_up(engine: Engine) -> None:
    seen: list[str] = []

    def script(push: Push) -> Answer:
        seen.append(push.token)
        return Rejected(status=429, reason="TooManyRequests") if len(seen) <= 10 else ACCEPTED

    engine.answer(script)
    engine.enqueue(canary=Canary(count=50))
    for _ in range(4):
        report = step(engine)
    assert report.canary_state == "passed"
    assert (report.sent, report.retrying) == (490, 10)
    engine.bring_forward()
    engine.run()
    assert engine.report().sent == 500


def test_an_outage_of_apns_is_no_result_and_the_rest_waits_for_one(engine: Engine) -> None:
    engine.answer(lambda push: Rejected(status=503, reason="ServiceUnavailable"))
    engine.enqueue(canary=Canary(count=30))
    for _ in range(8):
        engine.start()
        engine.work()
        engine.bring_forward()
        engine.sweep()
    assert len(engine.received) == 30
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.retries SET due_at = now() + interval '1 hour'")
    engine.sweep()
    assert engine.report().canary_state == "sending"
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.run()
    assert engine.report().sent == 500


def test_a_canary_paused_in_the_middle_goes_on_with_its_sample(engine: Engine) -> None:
    engine.enqueue(canary=Canary(count=60), batch_size=10)
    engine.start()
    engine.sender.campaigns.pause("hello")
    engine.work()
    engine.sweep()
    assert engine.report().canary_state == "sending"
    assert not engine.received
    engine.sender.campaigns.resume("hello")
    engine.run()
    assert engine.report().sent == 500
    assert set(engine.received.values()) == {1}


def test_a_canary_that_is_cancelled_has_the_rest_of_its_audience_cancelled(engine: Engine) -> None:
    engine.enqueue(canary=Canary(count=60, hold=True))
    until_paused(engine)
    engine.sender.campaigns.cancel("hello")
    engine.run()
    report = engine.report()
    assert (report.audience, report.sent, report.cancelled) == (500, 60, 440)


def test_a_canary_of_the_whole_audience_or_of_nobody_completes(engine: Engine) -> None:
    engine.enqueue("all", canary=Canary(count=10_000, hold=True))
    engine.enqueue("nobody", audience=Segment.where(plan="none"), canary=Canary(share=0.01, hold=True))
    engine.run()
    assert (engine.report("all").state, engine.report("all").sent) == ("completed", 500)
    assert (engine.report("nobody").state, engine.report("nobody").audience) == ("completed", 0)


def test_a_small_audience_has_at_least_one_device_for_its_canary(engine: Engine) -> None:
    engine.enqueue(canary=Canary(share=0.0001))
    engine.start()
    engine.work()
    assert len(engine.received) == 1
