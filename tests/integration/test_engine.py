"""The flow from a campaign row to the ledger, on a real PostgreSQL, with an APNs that answers as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from sender.apns_ids import delivery_apns_id
from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.fanout import LEAST_READY, MOST_OPEN
from sender.model import ACCEPTED, Answer, NotProcessed, Push, Rejected, Unknown
from sender.settings import Settings
from sender.store import batches
from sender.store.database import Database
from tests.integration.engine import BUNDLE, Engine, engine_on, token_of

EARLIER = datetime(2026, 1, 1, tzinfo=UTC)
LATER = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def only(token: str, answer: Answer) -> object:
    return lambda push: answer if push.token == token else ACCEPTED


def test_every_device_of_the_audience_is_sent_to_exactly_once(engine: Engine) -> None:
    engine.add_devices(1234)
    engine.enqueue(batch_size=100)
    engine.run()
    assert set(engine.received.values()) == {1}
    assert len(engine.received) == 1234
    assert engine.outcomes() == {"sent": 1234}
    assert engine.report().state == "completed"


def test_a_second_copy_of_a_message_does_nothing(engine: Engine) -> None:
    engine.add_devices(10)
    engine.enqueue()
    engine.start()
    queued = list(engine.queue)
    engine.work()
    assert [send_batch(engine.runtime, batch) for batch in queued] == [{"skipped": "not open"}] * len(queued)
    assert set(engine.received.values()) == {1}


def test_the_expiration_is_the_same_on_every_push_and_thirty_days_after_the_start(engine: Engine) -> None:
    engine.add_devices(300)
    engine.enqueue(batch_size=50)
    engine.run()
    report = engine.report()
    assert {push.headers.expiration for push in engine.apns.client.pushes} == {int(report.expiration.timestamp())}
    assert report.expiration - report.started_at.replace(microsecond=0) == timedelta(days=30)


def test_an_expiration_of_zero_means_one_attempt_and_no_storage(engine: Engine) -> None:
    engine.add_devices(3)
    engine.answer(lambda push: Rejected(status=503, reason="ServiceUnavailable"))
    engine.enqueue(expires_in=0)
    engine.run()
    assert {push.headers.expiration for push in engine.apns.client.pushes} == {0}
    assert set(engine.received.values()) == {1}
    assert engine.outcomes() == {"rejected": 3}


def test_a_token_registered_after_the_410_stays_active(engine: Engine) -> None:
    engine.add_devices(2, registered_at=LATER)
    engine.answer(only(token_of(1), Rejected(status=410, reason="Unregistered", timestamp=EARLIER)))
    engine.enqueue()
    engine.run()
    assert engine.states() == {"active": 2}
    assert [kind for (kind,) in engine.rows("SELECT kind FROM {s}.changelog")] == ["kept"]


def test_a_token_registered_before_the_410_becomes_invalid(engine: Engine) -> None:
    engine.add_devices(2, registered_at=EARLIER)
    engine.answer(only(token_of(1), Rejected(status=410, reason="Unregistered", timestamp=LATER)))
    engine.enqueue()
    engine.run()
    assert engine.states() == {"active": 1, "invalid": 1}
    assert engine.outcomes() == {"rejected": 1, "sent": 1}
    rows = engine.rows("SELECT kind, reason, campaign_id, apns_id::text FROM {s}.changelog")
    device = engine.rows("SELECT id FROM {s}.devices WHERE state = 'invalid'")[0][0]
    campaign = engine.rows("SELECT id FROM {s}.campaigns")[0][0]
    assert rows == [("invalidated", "Unregistered", campaign, delivery_apns_id(campaign, device))]


@pytest.mark.parametrize("reason", ["BadDeviceToken", "DeviceTokenNotForTopic"])
def test_a_token_that_apns_does_not_take_is_quarantined_and_never_invalidated(engine: Engine, reason: str) -> None:
    engine.add_devices(3, registered_at=EARLIER)
    engine.answer(only(token_of(2), Rejected(status=400, reason=reason)))
    engine.enqueue()
    engine.run()
    assert engine.states() == {"active": 2, "quarantined": 1}


def test_a_throttled_device_is_blocklisted_and_delivered_when_its_rest_is_over(engine: Engine) -> None:
    engine.add_devices(2)
    engine.answer(only(token_of(1), Rejected(status=429, reason="TooManyRequests")))
    engine.enqueue()
    engine.start()
    engine.work()
    assert engine.states() == {"active": 1, "blocklisted": 1}
    assert engine.report().retrying == 1
    engine.answer(lambda push: ACCEPTED)
    engine.sweep()
    assert not engine.queue  # not before its time
    engine.bring_forward()
    engine.run()
    assert engine.states() == {"active": 2}
    assert engine.outcomes() == {"sent": 2}
    assert [kind for (kind,) in engine.rows("SELECT kind FROM {s}.changelog ORDER BY id")] == [
        "blocklisted",
        "unblocked",
    ]


def test_a_device_whose_rest_outlasts_the_expiration_expires(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: Rejected(status=429, reason="TooManyRequests"))
    engine.enqueue(expires_in=60)
    engine.run()
    assert engine.outcomes() == {"expired": 1}


def test_a_server_error_is_retried_from_the_database_and_charged(engine: Engine) -> None:
    engine.add_devices(4)
    engine.answer(only(token_of(3), Rejected(status=503, reason="ServiceUnavailable")))
    engine.enqueue()
    engine.start()
    engine.work()
    assert engine.rows("SELECT attempts, reason, status FROM {s}.retries") == [(1, "ServiceUnavailable", 503)]
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 4}
    assert engine.rows("SELECT attempts, count(*) FROM {s}.deliveries GROUP BY 1 ORDER BY 1") == [(1, 3), (2, 1)]
    assert engine.rows("SELECT FROM {s}.retries") == []
    assert engine.report().state == "completed"


def test_retries_end_when_the_expiration_comes(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: Rejected(status=503, reason="ServiceUnavailable"))
    engine.enqueue(expires_in=600)
    for _ in range(12):
        engine.start()
        engine.work()
        engine.bring_forward()
        engine.sweep()
    assert engine.outcomes() == {"expired": 1}
    assert engine.report().by_reason == {"ServiceUnavailable": 1}


def test_a_push_without_an_answer_is_sent_again_when_at_least_once(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: Unknown(cause="timeout"))
    engine.enqueue()
    engine.start()
    engine.work()
    engine.answer(lambda push: ACCEPTED)
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 1}
    assert engine.received == {token_of(1): 2}


def test_a_push_without_an_answer_is_unknown_when_at_most_once(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: Unknown(cause="timeout"))
    engine.enqueue(delivery="at_most_once")
    engine.run()
    assert engine.outcomes() == {"unknown": 1}
    assert engine.received == {token_of(1): 1}


def test_a_refused_push_is_issued_twice_more_at_once_and_then_goes_back_untouched(engine: Engine) -> None:
    engine.add_devices(1)
    engine.answer(lambda push: NotProcessed(cause="REFUSED_STREAM"))
    engine.enqueue()
    engine.start()
    before = engine.now()
    engine.work()
    assert engine.received == {token_of(1): 3}
    assert engine.rows("SELECT state, setbacks, due_at > %s FROM {s}.batches", (before,)) == [("open", 1, True)]
    assert engine.rows("SELECT FROM {s}.retries") == []


def test_no_connection_means_that_nothing_is_charged_and_the_batch_waits_longer_each_time(engine: Engine) -> None:
    engine.add_devices(2)
    engine.answer(lambda push: NotProcessed(cause="connect: refused"))
    engine.enqueue()
    engine.start()
    for _ in range(3):
        engine.work()
        engine.bring_forward()
        engine.sweep()
    assert engine.received == {token_of(1): 3, token_of(2): 3}
    assert engine.rows("SELECT setbacks FROM {s}.batches") == [(3,)]
    engine.answer(lambda push: ACCEPTED)
    engine.run()
    assert engine.outcomes() == {"sent": 2}


@pytest.mark.parametrize("reason", ["InvalidProviderToken", "BadCertificate", "TopicDisallowed"])
def test_a_configuration_error_pauses_the_app_and_touches_no_token(engine: Engine, reason: str) -> None:
    engine.add_devices(5, registered_at=EARLIER)
    status = 400 if reason == "TopicDisallowed" else 403
    engine.answer(lambda push: Rejected(status=status, reason=reason))
    engine.enqueue()
    engine.start()
    engine.work()
    assert engine.states() == {"active": 5}
    assert engine.outcomes() == {}
    state, why = engine.rows("SELECT state, state_reason FROM {s}.apps")[0]
    assert state == "paused"
    assert why.startswith(f"{reason}: ")
    assert engine.report().pending == 5
    engine.answer(lambda push: ACCEPTED)
    engine.sender.apps.resume(BUNDLE)
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 5}


def test_a_refused_provider_token_gets_one_try_on_a_new_connection(engine: Engine) -> None:
    engine.add_devices(3)
    refuse = {token_of(1), token_of(2), token_of(3)}

    def script(push: Push) -> Answer:
        if push.token in refuse:
            refuse.discard(push.token)
            return Rejected(status=403, reason="InvalidProviderToken")
        return ACCEPTED

    engine.answer(script)
    engine.enqueue()
    engine.run()
    assert engine.apns.renewed == 1
    assert engine.outcomes() == {"sent": 3}
    assert engine.rows("SELECT state FROM {s}.apps") == [("active",)]


def test_too_many_provider_tokens_hold_the_credential(engine: Engine) -> None:
    engine.add_devices(2)
    engine.answer(lambda push: Rejected(status=429, reason="TooManyProviderTokenUpdates"))
    engine.enqueue()
    engine.start()
    engine.work()
    assert engine.rows("SELECT until > now() + interval '19 minutes' FROM {s}.breakers") == [(True,)]
    engine.answer(lambda push: ACCEPTED)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET due_at = NULL")
    engine.sweep()
    engine.work()
    assert set(engine.received.values()) == {1}  # held: nothing went out
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 2}


def test_a_wrong_message_fails_the_campaign_and_leaves_no_delivery_open(engine: Engine) -> None:
    engine.add_devices(30)
    engine.answer(lambda push: Rejected(status=413, reason="PayloadTooLarge"))
    engine.enqueue(batch_size=10)
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    engine.run()
    report = engine.report()
    assert report.state == "failed"
    assert engine.outcomes() == {"rejected": 10, "failed": 20}
    assert engine.states() == {"active": 30}


def test_a_cancelled_campaign_sends_nothing_more_and_says_what_it_left(engine: Engine) -> None:
    engine.add_devices(40)
    engine.enqueue(batch_size=10)
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    engine.sender.campaigns.cancel("hello")
    engine.run()
    report = engine.report()
    assert (report.state, report.sent, report.cancelled) == ("cancelled", 10, 30)
    assert report.finished_at is not None
    assert len(engine.received) == 10


def test_a_paused_campaign_resumes_with_exactly_those_not_sent(engine: Engine) -> None:
    engine.add_devices(100)
    engine.enqueue(batch_size=10)
    engine.start()
    send_batch(engine.runtime, engine.queue.pop(0))
    engine.sender.campaigns.pause("hello")
    engine.work()
    assert len(engine.received) == 10
    engine.sender.campaigns.resume("hello")
    engine.run()
    assert set(engine.received.values()) == {1}
    assert engine.outcomes() == {"sent": 100}


def test_what_was_claimed_and_not_issued_is_released(engine: Engine) -> None:
    engine.add_devices(200)
    engine.enqueue(batch_size=200)
    engine.start()

    def script(push: Push) -> Answer:
        if len(engine.apns.client.pushes) == 64:
            engine.runtime.stop_issuing()
        return ACCEPTED

    engine.answer(script)
    engine.work()
    assert engine.outcomes() == {"sent": 64}
    assert engine.report().pending == 136
    engine.runtime.leases._stopping = False
    engine.run()
    assert set(engine.received.values()) == {1}
    assert engine.outcomes() == {"sent": 200}


def test_devices_that_became_unreachable_after_the_cut_are_skipped_with_a_cause(engine: Engine) -> None:
    engine.add_devices(4)
    engine.enqueue()
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.devices SET state = 'invalid' WHERE token = %s", (token_of(1),))
        transaction.execute("UPDATE {s}.devices SET state = 'opted_out' WHERE token = %s", (token_of(2),))
        transaction.execute("DELETE FROM {s}.devices WHERE token = %s", (token_of(3),))
    engine.run()
    report = engine.report()
    assert (report.sent, report.skipped) == (1, 3)
    assert report.by_reason == {"Invalid": 1, "OptedOut": 1, "Moved": 1}


def test_a_fenced_worker_may_say_what_apns_accepted_but_finishes_nothing(engine: Engine) -> None:
    engine.add_devices(5)
    engine.enqueue()
    engine.start()
    batch = engine.queue.pop(0)

    def script(push: Push) -> Answer:
        if len(engine.apns.client.pushes) == 5:
            with engine.database.transaction() as transaction:  # sweep takes the batch back meanwhile
                transaction.execute("UPDATE {s}.batches SET state = 'open', owner = NULL, published_at = NULL")
        return Unknown(cause="timeout") if push.token == token_of(5) else ACCEPTED

    engine.answer(script)
    summary = send_batch(engine.runtime, batch)
    assert summary == {"sent": 4, "fenced": 1}
    assert engine.rows("SELECT FROM {s}.retries") == []
    engine.answer(lambda push: ACCEPTED)
    engine.run()
    assert engine.outcomes() == {"sent": 5}
    assert engine.received[token_of(5)] == 2
    assert engine.received[token_of(1)] == 1


def test_a_claim_whose_heartbeat_stands_still_is_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(5)
    engine.enqueue()
    engine.start()
    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, engine.queue.pop(0))
    assert claim is not None
    clock = [1000.0]
    monkeypatch.setattr("sender.engine.reclaiming.lease_clock", lambda: clock[0])
    monkeypatch.setattr("sender.store.batches._RECLAIM", batches._RECLAIM.split("  AND (now() - pg_post")[0])
    for _ in range(3):
        engine.sweep()
        clock[0] += engine.settings.lease / 2.5
    assert not engine.queue
    for _ in range(2):
        engine.sweep()
        clock[0] += engine.settings.lease / 2.5
    engine.work()
    assert engine.outcomes() == {"sent": 5}


def test_a_claim_that_beats_is_never_taken_back(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(5)
    engine.enqueue()
    engine.start()
    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, engine.queue.pop(0))
    assert claim is not None
    clock = [1000.0]
    monkeypatch.setattr("sender.engine.reclaiming.lease_clock", lambda: clock[0])
    monkeypatch.setattr("sender.store.batches._RECLAIM", batches._RECLAIM.split("  AND (now() - pg_post")[0])
    with engine.runtime.leases.hold(claim):
        for _ in range(8):
            engine.runtime.leases._beat()
            engine.sweep()
            clock[0] += engine.settings.lease / 2.5
    assert engine.rows("SELECT state FROM {s}.batches") == [("claimed",)]


def test_a_message_that_redis_lost_is_published_again(engine: Engine) -> None:
    engine.add_devices(30)
    engine.enqueue(batch_size=10)
    engine.start()
    lost, engine.queue = engine.queue, []
    engine.sweep()
    assert engine.queue == []  # too early to call them lost
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET published_at = published_at - interval '10 seconds'")
    engine.sweep()
    assert sorted(engine.queue) == sorted(lost)
    engine.run()
    assert engine.outcomes() == {"sent": 30}


def test_fanout_keeps_no_more_batches_open_than_its_bound(engine: Engine) -> None:
    engine.add_devices(1000)
    engine.enqueue(batch_size=1)
    engine.start()
    assert len(engine.queue) == LEAST_READY
    assert engine.rows("SELECT count(*) FROM {s}.batches") == [(MOST_OPEN,)]
    engine.run(rounds=100)
    assert engine.outcomes() == {"sent": 1000}
    assert engine.rows("SELECT count(*), max(size) FROM {s}.batches") == [(1000, 1)]


def test_batches_are_no_larger_than_a_twentieth_of_a_second_of_the_rate(engine: Engine) -> None:
    engine.add_devices(60)
    engine.enqueue(rate=400, batch_size=500)
    engine.run()
    assert engine.rows("SELECT DISTINCT size FROM {s}.batches") == [(20,)]
    assert engine.outcomes() == {"sent": 60}


def test_two_ticks_and_two_fanouts_at_once_do_no_harm(engine: Engine) -> None:
    engine.add_devices(500)
    engine.enqueue(batch_size=50)
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET fanout_until = NULL")
    engine.start()
    engine.run()
    assert set(engine.received.values()) == {1}
    assert engine.report().audience == 500


def test_an_empty_audience_completes(engine: Engine) -> None:
    engine.enqueue()
    engine.run()
    report = engine.report()
    assert (report.state, report.audience) == ("completed", 0)


def test_a_campaign_later_than_its_grace_is_missed(engine: Engine) -> None:
    engine.add_devices(1)
    engine.enqueue(send_at=datetime.now(UTC) + timedelta(hours=1), grace=60)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET send_at = now() - interval '2 minutes'")
    engine.run(rounds=2)
    report = engine.report()
    assert report.state == "missed"
    assert not engine.received


def test_a_device_in_an_environment_without_a_credential_is_not_in_the_audience(engine: Engine) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.credentials WHERE environment = 'sandbox'")
    engine.add_devices(3, environment="sandbox")
    engine.enqueue()
    engine.run()
    assert engine.report().audience == 0
