"""The sweep: what is dead is taken back, what is lost is published again, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from sender.client import Sender
from sender.engine import reclaiming
from sender.engine.reclaiming import HeartbeatWatch
from sender.settings import Settings
from sender.store import batches, workers
from sender.store.batches import Claim
from sender.store.database import Database
from tests.integration.engine import Engine, engine_on

LEASE = 30.0


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


@pytest.fixture
def pass_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The observer's clock goes on by so many seconds."""
    now = [1000.0]
    monkeypatch.setattr(reclaiming, "lease_clock", lambda: now[0])
    monkeypatch.setattr(  # not within a lease of the database's start: the tests' has just started
        batches, "_RECLAIM", batches._RECLAIM.split("  AND (now() - pg_post")[0]
    )

    def passed(seconds: float) -> None:
        now[0] += seconds

    return passed


def claimed(engine: Engine) -> Claim:
    engine.add_devices(1)
    engine.enqueue()
    engine.start()
    with engine.database.transaction() as transaction:
        claim = batches.claim(transaction, engine.queue.pop())
    assert claim is not None
    return claim


def states(engine: Engine) -> list[str]:
    return [state for (state,) in engine.rows("SELECT state FROM {s}.batches ORDER BY id")]


@pytest.mark.parametrize("apart", [1.0, LEASE / 2, LEASE, 10 * LEASE])
def test_a_dead_claim_is_taken_back_however_far_apart_the_sweeps_are(
    engine: Engine, pass_time: Callable[[float], None], apart: float
) -> None:
    claimed(engine)
    watch = HeartbeatWatch()
    for _ in range(100):
        watch.reclaim(engine.database, LEASE)
        if states(engine) == ["open"]:
            return
        pass_time(apart)
    raise AssertionError("it is never taken back")


def test_a_claim_is_not_taken_back_for_what_happened_while_nobody_looked(
    engine: Engine, pass_time: Callable[[float], None]
) -> None:
    claim = claimed(engine)
    watch = HeartbeatWatch()
    watch.reclaim(engine.database, LEASE)
    for _ in range(5):  # the machine sleeps, and the worker beats after each time
        pass_time(3600.0)
        watch.reclaim(engine.database, LEASE)
        assert states(engine) == ["claimed"]
        with engine.database.transaction() as transaction:
            assert workers.beat_claims(transaction, [claim.batch_id], [claim.owner])
        watch.reclaim(engine.database, LEASE)
    assert states(engine) == ["claimed"]


def test_two_sweeps_take_a_dead_claim_back_once(engine: Engine, pass_time: Callable[[float], None]) -> None:
    claimed(engine)
    watches = [HeartbeatWatch(), HeartbeatWatch()]
    for _ in range(5):
        for watch in watches:
            watch.reclaim(engine.database, LEASE)
        pass_time(LEASE)
    assert engine.rows("SELECT state, failures FROM {s}.batches") == [("open", 1)]


# --- lost messages ---------------------------------------------------------------------------------------------------


def published_ago(engine: Engine, batch: int, seconds: float) -> None:
    with engine.database.transaction() as transaction:
        transaction.execute(
            "UPDATE {s}.batches SET published_at = now() - make_interval(secs => %s) WHERE id = %s", (seconds, batch)
        )


def sweep_with(engine: Engine, waiting: int) -> list[int]:
    """A sweep while so many messages wait. Returns what it published."""
    before, engine.queue[:] = engine.queue[:], []
    engine.sweeper.run(engine.database, engine.settings, engine.publish, lambda: waiting)
    published, engine.queue[:] = engine.queue[:], before
    return published


@pytest.fixture
def three(engine: Engine) -> list[int]:
    """Three published batches of a large campaign."""
    engine.add_devices(3)
    engine.enqueue(batch_size=1)
    engine.start()
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET audience_estimate = 1000, fanout_until = NULL")
    return sorted(engine.queue)


def test_a_message_that_a_younger_one_overtook_is_published_again_while_others_wait(
    engine: Engine, three: list[int]
) -> None:
    lost, taken, young = three
    published_ago(engine, lost, 60)
    published_ago(engine, taken, 20)
    published_ago(engine, young, 1)
    with engine.database.transaction() as transaction:
        assert batches.claim(transaction, taken) is not None
    assert sweep_with(engine, waiting=50) == [lost]
    assert sweep_with(engine, waiting=50) == []


def test_a_message_that_waits_for_long_behind_others_is_not_published_twice(engine: Engine, three: list[int]) -> None:
    first, second, third = three
    for batch, seconds in ((first, 200), (second, 199), (third, 100)):
        published_ago(engine, batch, seconds)
    assert sweep_with(engine, waiting=50) == []
    with engine.database.transaction() as transaction:
        assert batches.claim(transaction, first) is not None
    assert sweep_with(engine, waiting=50) == []


def test_a_message_of_the_other_queue_overtakes_nobody(engine: Engine, three: list[int]) -> None:
    published_ago(engine, three[0], 100)
    engine.enqueue("small", batch_size=1)
    engine.start()
    small = max(engine.queue)
    with engine.database.transaction() as transaction:
        assert batches.claim(transaction, small) is not None
    for batch in three[1:]:
        published_ago(engine, batch, 100)
    with engine.database.transaction() as transaction:
        transaction.execute("UPDATE {s}.batches SET state = 'done' WHERE campaign_id = 2 AND id <> %s", (small,))
    assert sweep_with(engine, waiting=50) == []


def test_everything_is_published_again_when_no_message_waits(engine: Engine, three: list[int]) -> None:
    for batch in three:
        published_ago(engine, batch, 6)
    assert sorted(sweep_with(engine, waiting=0)) == three


def test_a_batch_that_somebody_holds_while_he_stands_still_is_not_lost_and_holds_nobody_up(
    engine: Engine, three: list[int]
) -> None:
    for batch in three:
        published_ago(engine, batch, 60)
    with engine.database.transaction() as transaction:  # of a worker that was stopped in the middle of its claim
        assert batches.claim(transaction, three[0]) is not None
        assert sorted(sweep_with(engine, waiting=0)) == three[1:]
    assert sweep_with(engine, waiting=50) == []


# --- a clock that was set back ---------------------------------------------------------------------------------------


def test_what_was_published_before_the_clock_was_set_back_is_not_waited_for(engine: Engine, three: list[int]) -> None:
    for batch in three:
        published_ago(engine, batch, -3600)
    assert sorted(sweep_with(engine, waiting=50)) == three


def test_a_fan_out_that_was_reserved_before_the_clock_was_set_back_is_free(engine: Engine) -> None:
    engine.add_devices(3)
    engine.enqueue()
    with engine.database.transaction() as transaction:
        transaction.execute(
            "UPDATE {s}.campaigns SET state = 'running', started_at = now(), cut_limit = 0, "
            "started_on = now()::date, fanout_until = now() + interval '1 hour'"
        )
    from sender.engine.tick import tick

    assert [key for _, key in tick(engine.database)] == ["hello"]
    assert tick(engine.database) == []
