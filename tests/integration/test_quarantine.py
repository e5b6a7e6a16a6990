"""Quarantine's life: left out, listed, tried again in small shares, released or confirmed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sender import Canary, InvalidInputError, Segment
from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.tick import tick
from sender.model import ACCEPTED, Answer, Rejected
from sender.settings import Settings
from sender.store import quarantine
from sender.store.database import Database
from tests.integration.engine import BUNDLE, Engine, engine_on, token_of

#: Devices 1 to 3 are in quarantine since an earlier campaign.
HELD = [token_of(n) for n in (1, 2, 3)]


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        engine.add_devices(304)
        engine.enqueue("earlier", audience=Segment.all(), rate=None)
        engine.answer(lambda push: answer("BadDeviceToken") if push.token in HELD else ACCEPTED)
        engine.run()
        for days, token in zip((3, 2, 1), HELD, strict=True):  # device 1 has been there the longest
            age(engine, token, days)
        engine.apns.client.pushes.clear()
        engine.answer(lambda push: ACCEPTED)
        yield engine


def answer(reason: str, status: int = 400) -> Answer:
    return Rejected(status=status, reason=reason)


def age(engine: Engine, token: str, days: int) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute(
            "UPDATE {s}.devices SET state_changed_at = state_changed_at - make_interval(days => %s) WHERE token = %s",
            (days, token),
        )


def states(engine: Engine) -> list[str]:
    return [engine.sender.devices.show(token).state.value for token in HELD]


def kinds(engine: Engine, token: str) -> list[Any]:
    return [change.kind for change in engine.sender.changelog.latest(device=token)]


def test_a_quarantined_device_is_left_out_and_counted_as_such(engine: Engine) -> None:
    count = engine.sender.campaigns.count(BUNDLE)
    assert (count.total, count.excluded) == (301, {"quarantined": 3})


def test_a_later_campaign_tries_one_in_a_hundred_again_the_longest_ago_first(engine: Engine) -> None:
    engine.enqueue("later", audience=Segment.all())
    engine.run()
    report = engine.report("later")
    assert (report.retested, report.audience, report.sent) == (3, 304, 304)
    assert states(engine) == ["active", "active", "active"]
    assert kinds(engine, HELD[0])[-1] == "released"
    assert set(engine.received.values()) == {1}


def test_fewer_than_a_hundred_devices_try_none_again(engine: Engine) -> None:
    engine.enqueue("small", audience=Segment.percentage(20, seed="x") | Segment.users("nobody"))
    engine.run()
    assert 0 < engine.report("small").audience < 100
    assert engine.report("small").retested == 0


def test_only_as_many_as_the_share_allows_and_none_when_it_is_off(engine: Engine) -> None:
    from sender.engine.fanout import cut_campaign

    for key, share, expected in (("one", 0.005, 1), ("off", 0.0, 0)):
        engine.enqueue(key)
        for campaign_id, _ in tick(engine.database):
            cut_campaign(engine.database, campaign_id, engine.publish, retest_share=share)
        engine.run()
        assert engine.report(key).retested == expected
        assert states(engine)[0] == "active"  # the one that had been there the longest, in the first round
    assert states(engine) == ["active", "quarantined", "quarantined"]


def test_a_second_hit_in_a_later_campaign_with_successes_confirms_it(engine: Engine) -> None:
    engine.answer(lambda push: answer("BadDeviceToken") if push.token in HELD[:2] else ACCEPTED)
    engine.enqueue("later")
    engine.run()
    assert states(engine) == ["invalid", "invalid", "active"]
    assert kinds(engine, HELD[0])[-2:] == ["quarantined", "invalidated"]
    assert (engine.report("later").rejected, engine.report("later").sent) == (2, 302)
    assert engine.sender.devices.restore(campaign="later").restored == {"quarantined": 2}


@pytest.mark.parametrize("went_on", [False, True])
def test_a_hit_of_a_campaign_that_the_guard_tripped_is_not_the_first_of_two(engine: Engine, went_on: bool) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute(
            "UPDATE {s}.trials SET state = %s, resumed = %s", ("trusted" if went_on else "tripped", went_on)
        )
    engine.answer(lambda push: answer("BadDeviceToken") if push.token == HELD[0] else ACCEPTED)
    engine.enqueue("second")
    engine.run()
    assert states(engine) == ["quarantined", "active", "active"]
    age(engine, HELD[0], 1)
    engine.enqueue("third")
    engine.run()
    assert engine.report("third").retested == 1
    assert states(engine) == ["invalid", "active", "active"]
    assert engine.sender.devices.restore(campaign="third").restored == {"quarantined": 1}
    assert engine.sender.devices.restore(campaign="second").restored == {"quarantined": 1}
    assert engine.sender.devices.restore(campaign="earlier").restored == {"active": 1}


def test_a_second_hit_confirms_nothing_while_the_campaign_itself_is_in_doubt(engine: Engine) -> None:
    engine.answer(lambda push: answer("BadDeviceToken"))
    engine.enqueue("later", batch_size=50)
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.trials (campaign_id, environment, judged, accepted, bad_token) "
            "SELECT id, 'production', 25, 5, 20 FROM {s}.campaigns WHERE key = 'later'"
        )
    ((retests,),) = engine.rows("SELECT id FROM {s}.batches WHERE kind = 'retest'")
    send_batch(engine.runtime, retests)
    assert engine.report("later").rejected == 3
    assert states(engine) == ["quarantined"] * 3


def test_a_second_hit_without_a_success_confirms_nothing(engine: Engine) -> None:
    engine.answer(lambda push: answer("BadDeviceToken"))
    engine.enqueue("broken")
    for _ in range(4):
        engine.start()
        engine.work()
        engine.sweep()
    assert "invalid" not in engine.states()


def test_a_retest_is_one_attempt_and_what_says_nothing_leaves_the_device_where_it_is(engine: Engine) -> None:
    engine.answer(lambda push: answer("ServiceUnavailable", 503) if push.token in HELD else ACCEPTED)
    engine.enqueue("later")
    engine.run()
    report = engine.report("later")
    assert (report.state, report.sent, report.rejected) == ("completed", 301, 3)
    assert states(engine) == ["quarantined"] * 3
    assert {token: engine.received[token] for token in HELD} == dict.fromkeys(HELD, 1)


def test_a_campaign_does_not_try_again_what_it_put_into_quarantine_itself(engine: Engine) -> None:
    fresh = token_of(200)
    engine.answer(lambda push: answer("BadDeviceToken") if push.token == fresh else ACCEPTED)
    engine.enqueue("later", batch_size=50)
    engine.run()
    assert engine.received[fresh] == 1
    assert engine.sender.devices.show(fresh).state == "quarantined"


def test_what_was_imported_as_quarantined_or_is_of_another_segment_is_not_tried(engine: Engine) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET state_campaign_id = NULL WHERE token = %s", (HELD[0],))
        transaction.execute('UPDATE {s}.devices SET attributes = \'{"plan": "x"}\' WHERE token = %s', (HELD[1],))
    engine.enqueue("later", audience=~Segment.where(plan="x"))
    engine.run()
    assert states(engine) == ["quarantined", "quarantined", "active"]


def test_a_canary_must_have_passed_before_anything_is_tried_again(engine: Engine) -> None:
    engine.enqueue("later", canary=Canary(share=0.5, hold=True))
    engine.run(rounds=4)
    assert engine.report("later").canary_state == "waiting"
    assert engine.report("later").retested == 0
    engine.sender.campaigns.resume("later")
    engine.run()
    assert (engine.report("later").retested, engine.report("later").audience) == (3, 304)
    assert set(engine.received.values()) == {1}


def test_registering_again_releases_a_device(engine: Engine) -> None:
    engine.sender.devices.register(BUNDLE, HELD[0])
    assert states(engine) == ["active", "quarantined", "quarantined"]


def test_a_person_releases_or_confirms_by_token_or_by_campaign(engine: Engine) -> None:
    devices = engine.sender.devices
    assert devices.release([HELD[0]], dry_run=True) == 1
    assert states(engine) == ["quarantined"] * 3
    assert devices.release([HELD[0]]) == 1
    assert devices.confirm(campaign="earlier", app=BUNDLE, dry_run=True) == 2
    assert devices.confirm(campaign="earlier") == 2
    assert states(engine) == ["active", "invalid", "invalid"]
    with pytest.raises(InvalidInputError, match="is active, not quarantined"):
        devices.release([HELD[0]])


def test_nothing_is_released_when_one_of_the_tokens_is_wrong(engine: Engine) -> None:
    with pytest.raises(InvalidInputError) as refused:
        engine.sender.devices.release([HELD[0], "abcdef", token_of(50)])
    assert len(refused.value.faults) == 2
    assert states(engine) == ["quarantined"] * 3


def test_age_confirms_only_where_pushes_were_accepted_since(engine: Engine) -> None:
    for token in HELD[:2]:
        age(engine, token, 90)
    with engine.database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.baselines")
        assert quarantine.confirm_aged(transaction, days=90) == 0
        transaction.execute(
            "INSERT INTO {s}.baselines (app_id, environment, judged, accepted) "
            "SELECT id, 'production', 10, 9 FROM {s}.apps"
        )
        assert quarantine.confirm_aged(transaction, days=0) == 0
        assert quarantine.confirm_aged(transaction, days=90, most=1) == 1
        assert quarantine.confirm_aged(transaction, days=90) == 1
    assert states(engine) == ["invalid", "invalid", "quarantined"]
    (change,) = engine.sender.changelog.latest(1, device=HELD[0])
    assert (change.kind, change.actor, change.reason) == ("invalidated", "sender", "BadDeviceToken")


def test_the_list_names_reason_campaign_and_time_and_counts_all(engine: Engine) -> None:
    found = engine.sender.devices.quarantined(app=BUNDLE, limit=2)
    assert (found.total, found.by_reason) == (3, {"BadDeviceToken": 3})
    assert [(each.token, each.campaign) for each in found.devices] == [(HELD[0], "earlier"), (HELD[1], "earlier")]
    assert engine.sender.devices.quarantined(reason="DeviceTokenNotForTopic").total == 0
