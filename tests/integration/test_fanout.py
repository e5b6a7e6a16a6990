"""What the fan-out publishes and when, on a real PostgreSQL: room for everybody, and turns that end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from sender import Sender
from sender.engine.fanout import LATEST, LEAD, LEAST_OPEN, LEAST_READY, MOST_OPEN, OPEN_SECONDS, cut_campaign
from sender.engine.later import Later
from sender.engine.tick import tick
from sender.settings import Settings
from sender.store.database import Database
from tests.integration.engine import Engine, engine_on


class Planned(Later):
    """Remembers what is to be published when."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def publish(self, key: str, batch_ids: Sequence[int], *, seconds: float, urgent: bool) -> bool:
        self.times += [seconds] * len(batch_ids)
        return True


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def turn(engine: Engine, later: Later | None = None) -> Any:
    """One turn on the only campaign that wants one."""
    ((campaign_id, _),) = tick(engine.database)
    return cut_campaign(engine.database, campaign_id, engine.publish, later=later)


@pytest.mark.parametrize("rate", [5.0, 200.0, 2000.0])
def test_batches_of_a_limited_rate_are_published_one_by_one(engine: Engine, rate: float) -> None:
    engine.add_devices(6000)
    engine.enqueue(rate=rate)
    later = Planned()
    done = turn(engine, later)
    assert not done.finished  # it ends all the same: the next look is the next tick's
    size = engine.rows("SELECT max(size) FROM {s}.batches")[0][0]
    assert done.devices <= rate * OPEN_SECONDS + size
    assert len(engine.queue) <= LEAD * rate / size + 1  # those whose turn is near
    gaps = {round(after - before, 3) for before, after in zip(later.times, later.times[1:], strict=False)}
    assert gaps == {round(size / rate, 3)}
    assert max(later.times) <= LATEST


def test_a_turn_that_finds_enough_open_adds_nothing(engine: Engine) -> None:
    engine.add_devices(6000)
    engine.enqueue(rate=200)
    first = turn(engine, Planned())
    later = Planned()
    again = turn(engine, later)
    assert first.devices > 0
    assert (again.devices, later.times, len(engine.queue)) == (0, [], len(engine.queue))


def test_many_slow_campaigns_each_have_their_batches_after_one_tick(engine: Engine) -> None:
    engine.add_devices(300)
    for number in range(30):
        engine.enqueue(f"slow-{number}", rate=1)
    for campaign_id, _ in tick(engine.database):
        cut_campaign(engine.database, campaign_id, engine.publish, later=Planned())
    assert engine.rows("SELECT count(DISTINCT campaign_id) FROM {s}.batches") == [(30,)]
    assert len(tick(engine.database)) == 30  # and each is asked for again


def test_batches_cut_at_a_higher_rate_are_given_out_as_the_lower_one_needs_them(engine: Engine) -> None:
    engine.add_devices(6000)
    engine.enqueue(rate=2000)
    turn(engine, Planned())
    assert engine.rows("SELECT max(size), count(*) > 20 FROM {s}.batches") == [(100, True)]
    engine.sender.campaigns.change("hello", rate=5)
    with engine.database.transaction() as transaction:  # nobody has taken them yet
        transaction.execute("UPDATE {s}.batches SET published_at = NULL")
    engine.queue.clear()
    later = Planned()
    turn(engine, later)
    assert len(engine.queue) + len(later.times) == LEAST_OPEN


def test_a_queue_that_nobody_empties_stays_short_though_much_is_cut(engine: Engine) -> None:
    engine.add_devices(1000)
    engine.enqueue(rate=None, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sender.engine.fanout.TURN", 0.3)
        turn(engine)
    assert len(engine.queue) == LEAST_READY
    assert engine.rows("SELECT count(*) FROM {s}.batches") == [(MOST_OPEN,)]


def test_what_is_left_after_the_cut_is_published_by_further_turns(engine: Engine) -> None:
    engine.add_devices(100)
    engine.enqueue(rate=None, batch_size=5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sender.engine.fanout.TURN", 0.0)
        turn(engine)
        assert engine.rows("SELECT cut_finished FROM {s}.campaigns") == [(True,)]
        assert len(engine.queue) == LEAST_READY
        engine.work()
        assert turn(engine).finished  # found by the tick, though it is cut to its end
    engine.work()
    assert engine.outcomes() == {"sent": 100}
    assert tick(engine.database) == []


def test_batches_that_rest_for_long_leave_room_for_others(engine: Engine) -> None:
    engine.add_devices(100)
    engine.enqueue(rate=2)
    turn(engine, Planned())
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET due_at = now() + interval '20 minutes', published_at = NULL")
    assert turn(engine, Planned()).devices > 0
