"""At most once: the intention is written before the push, and what may have been sent is never sent again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sender.client import Sender
from sender.engine.announcing import announced
from sender.engine.delivery import send_batch
from sender.engine.runtime import SLICE, Runtime
from sender.model import ACCEPTED, Answer, NotProcessed, Push, Rejected, Unknown
from sender.settings import Settings
from sender.store import batches, intents
from sender.store.batches import Claim
from sender.store.database import Database
from tests.integration.engine import Engine, engine_on, token_of

INTENTS = "SELECT device_id, epoch FROM {s}.intents ORDER BY device_id"


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def claim(engine: Engine, batch: int) -> Claim:
    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, batch)
    assert claim is not None
    return claim


def lose(engine: Engine, batch: int) -> None:
    """The worker died: its claim is taken back."""
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET state = 'open', owner = NULL WHERE id = %s", (batch,))


def announce(engine: Engine, claim: Claim, *devices: int) -> set[int]:
    with engine.database.transaction() as transaction:
        return intents.announce(transaction, claim, devices)


def test_an_intent_is_committed_before_its_push_and_gone_when_the_answer_is_recorded(engine: Engine) -> None:
    engine.add_devices(150)
    engine.enqueue(delivery="at_most_once", batch_size=150)
    announced_before: list[bool] = []

    def answer(push: Push) -> Answer:
        with engine.database.transaction() as transaction:  # another transaction: it sees what is committed
            announced_before.append(bool(intents.open_of(transaction, 1, [int(push.token, 16)])))
        return ACCEPTED

    engine.answer(answer)
    engine.run()
    assert announced_before == [True] * 150
    assert engine.outcomes() == {"sent": 150}
    assert engine.rows(INTENTS) == []


def test_intents_are_committed_in_slices_of_at_most_64(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(150)
    engine.enqueue(delivery="at_most_once", batch_size=150)
    sizes: list[int] = []
    real = intents.announce

    def spy(transaction: Any, claim: Claim, device_ids: Any) -> set[int]:
        sizes.append(len(device_ids))
        return real(transaction, claim, device_ids)

    monkeypatch.setattr("sender.engine.announcing.intents.announce", spy)
    engine.run()
    assert sizes == [SLICE, SLICE, 150 - 2 * SLICE]


def test_an_at_least_once_campaign_writes_no_intents(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(5)
    engine.enqueue()
    monkeypatch.setattr("sender.engine.announcing.intents.announce", None)
    engine.run()
    assert engine.outcomes() == {"sent": 5}


def test_what_a_dead_worker_may_have_sent_ends_as_unknown_and_the_rest_is_sent(engine: Engine) -> None:
    engine.add_devices(6)
    engine.enqueue(delivery="at_most_once")
    engine.start()
    (batch,) = engine.queue
    announce(engine, claim(engine, batch), 2, 3)  # and dies
    lose(engine, batch)
    engine.run()
    assert engine.outcomes() == {"sent": 4, "unknown": 2}
    assert not {token_of(2), token_of(3)} & set(engine.received)
    report = engine.report()
    assert (report.finished, report.by_reason) == (True, {"MayHaveBeenSent": 2})
    assert engine.rows(INTENTS) == []
    listed = engine.sender.activity.read(campaign="hello", reason="MayHaveBeenSent")
    assert [(line.outcome, line.status) for line in listed] == [("unknown", None)] * 2
    assert "may have arrived" in listed[0].meaning


@pytest.mark.parametrize(
    "first",
    [
        Rejected(status=429, reason="TooManyRequests"),
        Rejected(status=500, reason="InternalServerError"),
        Rejected(status=503, reason="Shutdown"),
        NotProcessed(cause="connect: refused"),
    ],
)
def test_definite_answers_are_tried_again(engine: Engine, first: Answer) -> None:
    engine.add_devices(3)
    engine.enqueue(delivery="at_most_once")
    asked: set[str] = set()

    def answer(push: Push) -> Answer:
        known = push.token in asked
        asked.add(push.token)
        return ACCEPTED if known else first

    engine.answer(answer)
    for _ in range(4):
        engine.start()
        engine.work()
        assert engine.rows(INTENTS) == []
        engine.bring_forward()
        engine.sweep()
    assert engine.outcomes() == {"sent": 3}


def test_a_refused_stream_is_sent_again_by_the_same_claim(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue(delivery="at_most_once")
    refused: set[str] = set()

    def answer(push: Push) -> Answer:
        if push.token == token_of(2) and not refused:
            refused.add(push.token)
            return NotProcessed(cause="refused")
        return ACCEPTED

    engine.answer(answer)
    engine.run()
    assert engine.outcomes() == {"sent": 3}
    assert engine.received == {token_of(1): 1, token_of(2): 2, token_of(3): 1}


def test_no_answer_ends_as_unknown_and_is_not_sent_again(engine: Engine) -> None:
    engine.add_devices(4)
    engine.enqueue(delivery="at_most_once")
    engine.answer(lambda push: Unknown(cause="timeout") if push.token == token_of(1) else ACCEPTED)
    engine.run()
    assert engine.outcomes() == {"sent": 3, "unknown": 1}
    assert set(engine.received.values()) == {1}
    assert engine.rows(INTENTS) == []


def test_what_was_not_issued_before_a_pause_leaves_no_intent_and_is_sent_after_it(engine: Engine) -> None:
    engine.add_devices(200)
    engine.enqueue(delivery="at_most_once", batch_size=200)

    def answer(push: Push) -> Answer:
        engine.runtime.leases.stop_issuing()
        return ACCEPTED

    engine.answer(answer)
    engine.start()
    engine.work()
    sent = engine.outcomes()["sent"]
    assert 0 < sent < 200
    assert engine.rows(INTENTS) == []
    engine.answer(lambda push: ACCEPTED)
    engine.runtime = Runtime(engine.settings, role="campaign", clients=engine.apns)  # type: ignore[arg-type]
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 200} and set(engine.received.values()) == {1}


def test_a_claim_that_was_lost_announces_nothing_and_so_issues_nothing(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue(delivery="at_most_once")
    engine.start()
    (batch,) = engine.queue
    stale = claim(engine, batch)
    lose(engine, batch)
    assert announce(engine, stale, 1, 2, 3) == set()
    assert announce(engine, claim(engine, batch), 1, 2, 3) == {1, 2, 3}
    assert announce(engine, stale, 1, 2, 3) == set()


def test_a_worker_issues_only_what_it_could_announce(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue(delivery="at_most_once")
    engine.start()
    with engine.database.transaction() as transaction:  # another claim's
        transaction.execute("INSERT INTO {s}.intents VALUES (1, 2, 999, 1)")
    engine.work()
    assert set(engine.received) == {token_of(1), token_of(3)}
    engine.bring_forward()
    engine.run()
    assert engine.outcomes() == {"sent": 2, "unknown": 1}


def test_a_fenced_worker_records_what_it_sent_and_takes_its_own_intents_along_only(engine: Engine) -> None:
    engine.add_devices(4)
    engine.enqueue(delivery="at_most_once")
    engine.start()
    (batch,) = engine.queue
    taken: list[Claim] = []

    def answer(push: Push) -> Answer:
        if not taken:  # in the middle of it the batch is taken back, and claimed by somebody else
            lose(engine, batch)
            taken.append(claim(engine, batch))
            with engine.database.transaction() as transaction:  # who announces what has no intent yet
                transaction.execute("DELETE FROM {s}.intents WHERE device_id = 4")
            announce(engine, taken[0], 4)
        return ACCEPTED if push.token != token_of(3) else Rejected(status=503, reason="Shutdown")

    engine.answer(answer)
    send_batch(engine.runtime, batch)
    assert engine.outcomes() == {"sent": 3}
    assert engine.rows(INTENTS) == [(4, 2)]


def test_unknowns_are_told_apart_from_devices_that_a_fenced_worker_settled(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue(delivery="at_most_once")
    engine.start()
    (batch,) = engine.queue
    announce(engine, claim(engine, batch), 1, 2)
    with engine.database.transaction() as transaction:  # its answer for one of them came in time
        transaction.execute(
            "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, outcome) "
            "SELECT started_on, id, 1, 'sent' FROM {s}.campaigns"
        )
        transaction.execute("UPDATE {s}.batches SET sent = 1")
    lose(engine, batch)
    engine.run()
    assert engine.outcomes() == {"sent": 2, "unknown": 1}
    assert engine.report().sent == 2


@pytest.mark.parametrize(("verb", "outcome"), [("cancel", "cancelled"), ("fail", "failed")])
def test_a_campaign_that_ends_early_calls_unknown_what_may_have_been_sent(
    engine: Engine, verb: str, outcome: str
) -> None:
    engine.add_devices(6)
    engine.enqueue(delivery="at_most_once")
    engine.start()
    (batch,) = engine.queue
    announce(engine, claim(engine, batch), 5)
    lose(engine, batch)
    if verb == "cancel":
        engine.sender.campaigns.cancel("hello")
    else:
        with engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.campaigns SET state = 'failed'")
    engine.sweep()
    engine.sweep()
    assert engine.outcomes() == {outcome: 5, "unknown": 1}
    assert engine.rows("SELECT device_id FROM {s}.deliveries WHERE reason = 'MayHaveBeenSent'") == [(5,)]
    assert engine.rows(INTENTS) == []
    assert engine.report().finished


def test_a_retry_that_may_have_been_sent_is_not_sent_again(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue(delivery="at_most_once")
    engine.answer(lambda push: Rejected(status=503, reason="Shutdown"))
    engine.start()
    engine.work()
    engine.bring_forward()
    engine.sweep()
    (batch,) = engine.queue
    announce(engine, claim(engine, batch), 1)
    lose(engine, batch)
    engine.answer(lambda push: ACCEPTED)
    engine.run()
    assert engine.outcomes() == {"sent": 2, "unknown": 1}
    assert engine.rows("SELECT FROM {s}.retries") == [] and engine.rows(INTENTS) == []


def test_a_device_that_moved_away_after_it_may_have_been_sent_to_is_unknown_not_skipped(engine: Engine) -> None:
    engine.add_devices(2)
    engine.enqueue(delivery="at_most_once")
    engine.start()
    (batch,) = engine.queue
    announce(engine, claim(engine, batch), 1)
    lose(engine, batch)
    with engine.database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.devices WHERE id = 1")
    engine.run()
    assert engine.outcomes() == {"sent": 1, "unknown": 1}


def test_announcing_stops_with_the_claim(engine: Engine) -> None:
    engine.add_devices(200)
    engine.enqueue(delivery="at_most_once", batch_size=200)
    engine.start()
    held = claim(engine, engine.queue[0])
    with engine.runtime.leases.hold(held) as lease:
        from sender.engine.preparing import Plan

        with engine.database.transaction() as transaction:
            plan = Plan(targets=batches.targets(transaction, held))
        parts = announced(engine.runtime, lease, plan, range(200))
        assert len(next(parts)) == SLICE
        lease.stopped.set()
        assert list(parts) == []
    assert len(engine.rows(INTENTS)) == SLICE
