"""Pace and deadlines of a campaign: given with it, changed later, foreseen, on a real PostgreSQL."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa

from sender import ConflictError, InvalidCampaignError, Segment, Sender, TransitionError
from sender.engine.tick import tick
from sender.halting import wait_until_halted
from sender.policy.states import CAMPAIGN_MOVES, CampaignState
from sender.store import reports, segments
from sender.store.database import Database
from tests.integration.campaign_rows import APP, PAYLOAD, add_app, add_batch, add_devices, start
from tests.integration.engine import Engine, engine_on

SOON = datetime.now(UTC) + timedelta(minutes=1)
FAR = datetime.now(UTC) + timedelta(days=400)


@pytest.fixture
def app(database: Database) -> int:
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        add_devices(transaction, app_id, 1000)
    return app_id


@pytest.fixture
def engine(settings: Any, database: Database, sender: Sender) -> Any:
    with engine_on(settings, database, sender) as engine:
        yield engine


# --- given with it --------------------------------------------------------------------------------------------------


def test_a_time_to_spread_over_becomes_a_rate_when_it_starts(engine: Engine) -> None:
    engine.add_devices(600)
    campaign = engine.sender.campaigns.enqueue(APP, key="hello", payload=PAYLOAD, over=timedelta(minutes=10))
    assert (campaign.row.rate, campaign.row.over) == (None, 600.0)
    engine.start()
    assert engine.sender.campaigns.load("hello").rate == 1.0
    assert engine.rows("SELECT DISTINCT size FROM {s}.batches") == [(1,)]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"rate": 5, "over": 60}, "exclude each other"),
        ({"rate": None, "over": 60}, "exclude each other"),
        ({"over": 0}, "at least a second"),
        ({"over": "2h"}, "over"),
        ({"finish_by": datetime(2027, 1, 1)}, "time zone"),
        ({"finish_by": "tomorrow"}, "finish_by"),
        ({"exclude_sent": ["nobody"]}, "no campaign"),
        ({"exclude_sent": [""]}, "exclude_sent"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_nothing_written(
    app: int, sender: Sender, options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(InvalidCampaignError, match=fault):
        sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, **options)
    assert sender.campaigns.list() == []


def test_a_repeat_with_another_deadline_is_another_campaign(app: int, sender: Sender) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, finish_by=FAR, over=60)
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, finish_by=FAR, over=60)
    with pytest.raises(ConflictError):
        sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, finish_by=SOON, over=60)


# --- foreseen -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ({"rate": 1, "expires_in": 60}, "about 940 of them will expire unsent"),
        ({"rate": 1, "finish_by": SOON}, "cannot finish by"),
        ({"over": timedelta(hours=2), "expires_in": 3600}, "expires in 1:00:00"),
        ({"over": timedelta(hours=2), "finish_by": SOON}, "cannot finish by"),
    ],
)
def test_a_campaign_that_cannot_finish_in_time_says_so_when_it_is_enqueued(
    app: int, sender: Sender, options: dict[str, Any], warning: str
) -> None:
    campaign = sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, **options)
    (said,) = campaign.warnings
    assert warning in said
    assert sender.campaigns.report("spring").warnings  # and as long as it is so
    rehearsal = sender.campaigns.rehearse(APP, key="autumn", payload=PAYLOAD, **options)
    assert len(rehearsal.warnings) == 1


@pytest.mark.parametrize(
    "options", [{"rate": 1000, "expires_in": 60}, {"rate": 1, "expires_in": 0}, {"rate": None, "finish_by": FAR}]
)
def test_a_campaign_that_can_finish_says_nothing(app: int, sender: Sender, options: dict[str, Any]) -> None:
    assert sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, **options).warnings == ()
    assert sender.campaigns.report("spring").warnings == ()


def test_a_start_that_is_past_by_more_than_its_grace_is_said_when_it_is_enqueued(app: int, sender: Sender) -> None:
    options: dict[str, Any] = {"send_at": datetime.now(UTC) - timedelta(hours=2), "rate": None}
    (said,) = sender.campaigns.rehearse(APP, key="spring", payload=PAYLOAD, **options).warnings
    assert "will not start" in said and "(1:00:00)" in said
    assert sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, **options).warnings == (said,)
    assert sender.campaigns.enqueue(APP, key="autumn", payload=PAYLOAD, grace=10_000, **options).warnings == ()


def test_an_audience_that_is_empty_is_said_before_it_starts(
    app: int, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LOOKED_FOR", "1min")
    options: dict[str, Any] = {"payload": PAYLOAD, "audience": Segment.one_of("plan", ["none"]), "rate": 1}
    (said,) = sender.campaigns.rehearse(APP, key="spring", **options).warnings
    assert "its audience is empty" in said and "sender campaigns show spring" in said
    assert sender.campaigns.create_draft(APP, key="spring", **options).warnings == (said,)
    assert sender.campaigns.report("spring").warnings == (said,)
    assert sender.campaigns.send("spring").warnings == (said,)
    assert sender.campaigns.enqueue(APP, key="spring", **options).warnings == (said,)
    assert sender.campaigns.cancel("spring").report().warnings == ()
    assert sender.campaigns.enqueue(APP, key="spring", **options).warnings == ()  # it has ended


def test_whether_an_audience_is_empty_is_looked_at_for_a_moment_only(
    app: int, sender: Sender, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "LOOKED_FOR", "20ms")
    monkeypatch.setattr(segments, "reachable", lambda *_: sa.literal_column("pg_sleep(60)::text").is_(None))
    with database.transaction() as transaction:
        options: dict[str, Any] = {"connection": transaction.connection, "rate": None}
        assert sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, **options).warnings == ()
        assert transaction.execute("SHOW statement_timeout").fetchall() == [("0",)]
    assert sender.campaigns.load("spring").state is CampaignState.SCHEDULED


def test_the_limit_of_the_app_counts_too(app: int, sender: Sender) -> None:
    sender.apps.set_rate(APP, 1)
    assert sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=None, expires_in=60).warnings


def add_answers(database: Database, campaign_id: int, *, size: int, every: float) -> None:
    """Have a campaign run for 100 seconds, and batches of this size be answered in the last 20 of them."""
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET started_at = now() - interval '100 seconds'")
        transaction.execute(
            "INSERT INTO {s}.batches (campaign_id, device_ids, size, state, sent, finished_at) "
            "SELECT %(id)s, '{}', %(size)s, 'done', %(size)s, now() - n * make_interval(secs => %(every)s) "
            "FROM generate_series(1, %(count)s) AS n",
            {"id": campaign_id, "size": size, "every": every, "count": int(20 / every)},
        )


def test_a_running_campaign_has_its_speed_its_end_and_its_warning(app: int, sender: Sender, database: Database) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=10, finish_by=SOON)
    id_ = start(database, "spring", audience_estimate=1000)
    add_answers(database, id_, size=10, every=1.0)
    report = sender.campaigns.report("spring")
    assert report.rate_now == pytest.approx(10, rel=0.3)
    assert report.rate_average == pytest.approx(2, rel=0.2)
    assert report.expected_finish is not None
    assert (report.expected_finish - report.now).total_seconds() >= 79
    assert "cannot finish by" in report.warnings[0]
    sender.campaigns.change("spring", finish_by=FAR)
    assert sender.campaigns.report("spring").warnings == ()


@pytest.mark.parametrize("whose", ["campaign", "app"])
def test_the_speed_counts_no_answers_from_before_a_change_of_a_rate(
    app: int, sender: Sender, database: Database, whose: str
) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=1000)
    id_ = start(database, "spring", audience_estimate=100_000)
    add_answers(database, id_, size=50, every=0.05)
    assert sender.campaigns.report("spring").rate_now == pytest.approx(1000, rel=0.3)
    if whose == "campaign":
        sender.campaigns.change("spring", rate=0.2)
    else:
        sender.apps.set_rate(APP, 0.2)
    assert sender.campaigns.report("spring").rate_now is None  # nobody can have heeded it yet
    with database.transaction() as transaction:
        moved = "SET paced_at = paced_at - interval '11 seconds'"
        transaction.execute(f"UPDATE {{s}}.campaigns {moved}, started_at = started_at - interval '11 seconds'")
        transaction.execute(f"UPDATE {{s}}.apps {moved}")
        transaction.execute("UPDATE {s}.batches SET finished_at = finished_at - interval '11 seconds'")
        add_batch(transaction, id_, 1, sent=1, finished_at=datetime.now(UTC) - timedelta(seconds=5))
        add_batch(transaction, id_, 1, sent=1, finished_at=datetime.now(UTC))
    assert sender.campaigns.report("spring").rate_now == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("rate", [1, pytest.param(None, id="slowed down by its credential alone")])
def test_the_speed_of_batches_that_were_cut_at_a_higher_rate_is_that_of_their_devices(
    engine: Engine, rate: float | None
) -> None:
    engine.add_devices(40)
    engine.enqueue(batch_size=40)
    engine.start()
    claim_of(engine, engine.queue[0])
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET rate = %s, started_at = now() - interval '1 minute'", (rate,))
        transaction.execute(
            "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, outcome, at) "
            "SELECT c.started_on, c.id, d.id, 'sent', now() - (d.id - 1) * interval '1 second' "
            "FROM {s}.campaigns c, {s}.devices d ORDER BY d.id LIMIT 30"
        )
        transaction.execute("UPDATE {s}.batches SET sent = 30, epoch = 12")
    assert engine.sender.campaigns.report("hello").rate_now == pytest.approx(1.0, rel=0.15)


# --- changed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [state for state in CampaignState if CAMPAIGN_MOVES[state]])
def test_pace_and_deadline_change_while_the_campaign_has_not_ended(
    app: int, sender: Sender, database: Database, state: CampaignState
) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=10)
    start(database, "spring", state=state.value)
    before = sender.campaigns.load("spring")
    row = sender.campaigns.change("spring", rate=None, finish_by=SOON).row
    assert (row.rate, row.finish_by, row.state) == (None, SOON, state)
    assert row.epoch == before.epoch + 1
    row = sender.campaigns.change("spring", rate=5, finish_by=None).row
    assert (row.rate, row.finish_by) == (5, None)
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=10)  # what was asked for is what it was


@pytest.mark.parametrize("state", [state for state in CampaignState if not CAMPAIGN_MOVES[state]])
def test_nothing_of_an_ended_campaign_changes(
    app: int, sender: Sender, database: Database, state: CampaignState
) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=10)
    start(database, "spring", state=state.value)
    with pytest.raises(TransitionError, match=f"{state}: nothing of it"):
        sender.campaigns.change("spring", rate=5)
    assert sender.campaigns.load("spring").rate == 10


def test_what_is_left_of_a_running_campaign_is_spread_over_a_time(app: int, sender: Sender, database: Database) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=10)
    start(database, "spring", audience_estimate=1000)
    assert sender.campaigns.change("spring", over=timedelta(seconds=200)).row.rate == 5.0


def test_a_campaign_that_starts_while_it_is_spread_over_a_time_is_not_without_a_limit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(600)
    engine.enqueue(rate=10)
    read = reports.read

    def read_and_start(*args: Any) -> Any:
        report = read(*args)
        monkeypatch.setattr(reports, "read", read)
        tick(engine.database)
        return report

    monkeypatch.setattr(reports, "read", read_and_start)
    row = engine.sender.campaigns.change("hello", over=timedelta(seconds=200)).row
    assert (row.state, row.rate, row.over) == (CampaignState.RUNNING, 3.0, 200.0)


def test_an_expiration_is_put_off_but_never_brought_forward(engine: Engine) -> None:
    engine.add_devices(10)
    engine.enqueue(rate=0.001, expires_in=3600)
    engine.start()
    before = engine.sender.campaigns.load("hello")
    with pytest.raises(ConflictError, match="put off, not brought forward"):
        engine.sender.campaigns.change("hello", expires_in=60)
    after = engine.sender.campaigns.change("hello", expires_in=7200).row
    assert after.expiration - before.expiration == timedelta(seconds=3600)
    engine.sender.campaigns.change("hello", rate=None)
    engine.run()
    assert {push.headers.expiration for push in engine.apns.client.pushes} == {int(after.expiration.timestamp())}


@pytest.mark.parametrize("changes", [{}, {"rate": -1}, {"rate": 5, "over": 60}, {"finish_by": "soon"}, {"over": 0}])
def test_a_change_that_cannot_be_meant_is_refused(app: int, sender: Sender, changes: dict[str, Any]) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD, rate=10)
    with pytest.raises(InvalidCampaignError):
        sender.campaigns.change("spring", **changes)
    assert sender.campaigns.load("spring").epoch == 0


# --- commands at once -----------------------------------------------------------------------------------------------


def test_commands_at_once_resolve_by_the_state_machine_and_refused_ones_say_why(
    app: int, sender: Sender, database: Database
) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD)
    start(database, "spring")
    begin = threading.Barrier(6)

    def commands(seed: int) -> Counter[str]:
        chance, did = random.Random(seed), Counter[str]()
        begin.wait()
        for _ in range(6):
            verb = chance.choice(("pause", "resume"))
            try:
                getattr(sender.campaigns, verb)("spring")
                did[verb] += 1
            except TransitionError as error:
                assert "campaign 'spring' is" in str(error)
        return did

    with ThreadPoolExecutor(6) as pool:
        done = sum(pool.map(commands, range(6)), Counter())
    row = sender.campaigns.load("spring")
    assert row.epoch == done.total()  # each that was not refused moved it, once
    assert done["pause"] - done["resume"] == (row.state is CampaignState.PAUSED)


def test_a_cancel_is_final_whoever_else_commands(app: int, sender: Sender, database: Database) -> None:
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD)
    start(database, "spring")
    begin = threading.Barrier(3)

    def command(verb: str) -> None:
        begin.wait()
        for _ in range(4):
            try:
                getattr(sender.campaigns, verb)("spring", **({"reason": "wrong text"} if verb == "cancel" else {}))
            except TransitionError:
                continue

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(command, ("pause", "resume", "cancel")))
    row = sender.campaigns.load("spring")
    assert (row.state, row.state_reason) == (CampaignState.CANCELLED, "wrong text")
    for verb in ("pause", "resume", "cancel"):
        with pytest.raises(TransitionError, match="for good"):
            getattr(sender.campaigns, verb)("spring")


# --- a stop that is heeded ------------------------------------------------------------------------------------------


def test_a_pause_returns_when_the_workers_have_heeded_it(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.campaigns.wait_until_halted", partial(wait_until_halted, timeout=60.0))
    engine.add_devices(40)
    engine.enqueue(batch_size=20)
    engine.start()
    engine.runtime.leases.start()
    claim = claim_of(engine, engine.queue[0])
    with engine.runtime.leases.hold(claim) as lease:
        campaign = engine.sender.campaigns.pause("hello", reason="a look")
        assert campaign.acknowledged
        assert lease.stopped.is_set()
    assert engine.rows("SELECT halted FROM {s}.batches WHERE id = %s", (claim.batch_id,)) == [(True,)]


def test_a_pause_that_nobody_heeds_returns_all_the_same_and_says_so(engine: Engine) -> None:
    engine.add_devices(40)
    engine.enqueue(batch_size=20)
    engine.start()
    claim_of(engine, engine.queue[0])  # by a worker that has died
    campaign = engine.sender.campaigns.pause("hello")
    assert campaign.acknowledged is False
    assert campaign.report().in_flight == 20
    assert not engine.sender.apps.halted(APP)


def test_pausing_an_app_stops_what_its_campaigns_have_under_way(engine: Engine) -> None:
    engine.add_devices(40)
    engine.enqueue(batch_size=20)
    engine.start()
    engine.runtime.leases.start()
    with engine.runtime.leases.hold(claim_of(engine, engine.queue[0])) as lease:
        assert engine.sender.apps.pause(APP)
        assert engine.sender.apps.halted(APP)
        assert lease.stopped.is_set()


def test_a_claim_after_a_pause_is_not_taken_for_halted(engine: Engine) -> None:
    engine.add_devices(20)
    engine.enqueue(batch_size=20)
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET halted = true")
    claim_of(engine, engine.queue[0])
    assert engine.rows("SELECT halted FROM {s}.batches") == [(False,)]


# --- mending a wrong message ----------------------------------------------------------------------------------------


def test_a_wrong_message_is_mended_by_cancelling_and_sending_anew(engine: Engine) -> None:
    engine.add_devices(100)
    engine.enqueue("wrong", batch_size=10)
    engine.start()
    for batch in engine.queue[:4]:
        send(engine, batch)
    engine.queue.clear()
    with pytest.raises(ConflictError, match="cancel it first"):
        engine.enqueue("right", exclude_sent="wrong")
    engine.sender.campaigns.cancel("wrong", reason="wrong text")
    engine.enqueue("right", exclude_sent="wrong")
    engine.start()  # not before the last answers of the wrong one are written down
    assert engine.sender.campaigns.load("right").state is CampaignState.SCHEDULED
    engine.run()
    assert engine.sender.campaigns.report("wrong").cancelled == 60
    assert engine.sender.campaigns.report("right").sent == 60
    assert set(engine.received.values()) == {1}
    engine.enqueue("right", exclude_sent="wrong")  # a repeat changes nothing


@pytest.mark.parametrize(("delivery", "reached"), [("at_least_once", 100), ("at_most_once", 90)])
def test_who_may_have_got_the_wrong_message_is_left_out_only_where_nobody_may_get_two(
    engine: Engine, delivery: str, reached: int
) -> None:
    engine.add_devices(100)
    engine.enqueue("wrong", delivery="at_most_once")
    engine.start()
    engine.queue.clear()
    with engine.database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, outcome) "
            "SELECT c.started_on, c.id, d.id, 'unknown' FROM {s}.campaigns c, {s}.devices d ORDER BY d.id LIMIT 10"
        )
    engine.sender.campaigns.cancel("wrong")
    engine.sweep()
    engine.enqueue("right", exclude_sent=["wrong"], delivery=delivery)
    engine.run()
    assert engine.sender.campaigns.report("right").sent == reached


def claim_of(engine: Engine, batch_id: int) -> Any:
    from sender.store import batches

    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, batch_id)
    assert claim is not None
    return claim


def send(engine: Engine, batch_id: int) -> None:
    from sender.engine.delivery import send_batch

    send_batch(engine.runtime, batch_id)
