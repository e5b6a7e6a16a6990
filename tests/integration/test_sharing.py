"""What a process knows of fair shares, and what the fan-out makes of it, on a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sender import Sender
from sender.engine.fanout import cut_campaign, open_target
from sender.engine.sharing import Shares
from sender.engine.tick import tick
from sender.policy.pace import LONGEST_TURN
from sender.policy.sharing import GROWTH, SURPLUS
from sender.settings import Settings
from sender.store.database import Database
from sender.store.limits import Limit, share_of
from tests.integration.engine import BUNDLE, Engine, engine_on
from tests.integration.test_fanout import Planned


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        engine.add_devices(2000)
        yield engine


def start(engine: Engine, **rates: float | None) -> list[int]:
    """Campaigns under 200 pushes a second, started and not cut."""
    engine.sender.apps.set_rate(BUNDLE, 200.0)
    for key, rate in rates.items():
        engine.enqueue(key, rate=rate)
    tick(engine.database)
    return [id for (id,) in engine.rows("SELECT id FROM {s}.campaigns ORDER BY id")]


def known(engine: Engine, installation: float | None = None) -> dict[int, float | None]:
    shares = Shares(engine.database, installation)
    return {id: shares.of(id) for (id,) in engine.rows("SELECT id FROM {s}.campaigns ORDER BY id")}


def test_campaigns_that_started_a_moment_ago_have_their_shares(engine: Engine) -> None:
    first, second, slow = start(engine, first=None, second=1000.0, slow=20.0)
    assert known(engine) == {first: 90.0, second: 90.0, slow: None}
    assert known(engine, installation=100.0) == {first: 40.0, second: 40.0, slow: None}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE {s}.campaigns SET state = 'paused' WHERE id = %s",
        "UPDATE {s}.campaigns SET cut_finished = true WHERE id = %s",  # it waits for its retries
        "UPDATE {s}.campaigns SET audience_estimate = 100 WHERE id = %s",  # it goes by the priority queue
        "INSERT INTO {s}.batches (campaign_id, kind, device_ids, size, due_at) "
        "VALUES (%s, 'first', '{1}', 1, now() + interval '1 minute')",  # its credential rests, and all of it waits
    ],
)
def test_a_campaign_that_wants_nothing_now_is_kept_nothing(engine: Engine, change: str) -> None:
    first, _, other = start(engine, first=None, second=None, other=None)
    with engine.database.transaction() as transaction:
        transaction.execute(change, (other,))
    assert known(engine)[first] == 100.0


def test_a_campaign_whose_batches_all_wait_for_their_turn_keeps_its_share(engine: Engine) -> None:
    first, second = start(engine, first=None, second=None)
    with engine.database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.batches (campaign_id, kind, device_ids, size, due_at) "
            "VALUES (%s, 'first', '{1}', 1, now() + make_interval(secs => %s))",
            (second, LONGEST_TURN),
        )
    assert known(engine) == {first: 100.0, second: 100.0}


def test_a_campaign_that_has_its_limits_to_itself_has_no_share(engine: Engine) -> None:
    (only,) = start(engine, only=None)
    assert known(engine) == {only: None}


def test_a_campaign_is_cut_and_published_for_its_share_from_the_first_look_on(engine: Engine) -> None:
    first, *others = start(engine, **{f"campaign-{number}": None for number in range(4)})
    shares = Shares(engine.database, None)
    shares.of(first)  # looked at before the last one started
    engine.enqueue("late", rate=None)
    tick(engine.database)
    ((late,),) = engine.rows("SELECT max(id) FROM {s}.campaigns")
    for campaign_id in (first, *others, late):
        cut_campaign(engine.database, campaign_id, engine.publish, later=Planned(), shares=shares)
    cut = dict(engine.rows("SELECT campaign_id, count(*) FROM {s}.batches GROUP BY 1"))
    assert cut[late] == open_target(40.0 * SURPLUS, 10)
    assert engine.rows("SELECT DISTINCT size FROM {s}.batches") == [(10,)]  # as large as if it were alone
    assert cut[first] <= open_target(50.0 * SURPLUS, 10)


def test_a_campaign_whose_rivals_leave_their_shares_is_published_for_more(engine: Engine) -> None:
    first, _ = start(engine, first=None, second=None)
    shares = Shares(engine.database, None)
    shares.meet(first)
    assert shares.pace(first, 200.0) == 100.0 * SURPLUS
    cut_campaign(engine.database, first, engine.publish, later=Planned(), shares=shares)  # it had none at all
    assert shares.pace(first, 200.0) == min(200.0, 100.0 * SURPLUS * GROWTH)
    shares.note(first, 200.0, short=False)
    assert shares.pace(first, 200.0) == pytest.approx(160.0)


def test_only_what_is_shared_and_not_urgent_is_told_apart_by_shares(engine: Engine) -> None:
    first, _ = start(engine, first=None, second=None)
    app, own = Limit(scope="app:1", rate=200.0), Limit(scope=f"campaign:{first}", rate=500.0)
    assert list(engine.runtime.share(first, [app, own])) == [share_of(first, 100.0)]
    assert engine.runtime.share(first, [own]) == ()
    engine.runtime.role = "priority"
    assert engine.runtime.share(first, [app, own]) == ()
