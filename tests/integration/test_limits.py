"""Grants on a real PostgreSQL: how far they move the limits, not how long anything takes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from sender.engine.pacing import Leave, limits_of, take_grant
from sender.policy.pace import lateness
from sender.store.database import Database
from sender.store.limits import Limit, take


def ahead(database: Database, scope: str) -> float:
    """Seconds by which a limit's next push lies after the transaction's start."""
    with database.transaction() as transaction:
        row = transaction.execute(
            "SELECT extract(epoch FROM free_at - clock_timestamp())::float8 FROM {s}.limits WHERE scope = %s", (scope,)
        ).fetchone()
    assert row is not None
    return float(row[0])


def free_at(database: Database, scope: str) -> object:
    with database.transaction() as transaction:
        return transaction.execute("SELECT free_at FROM {s}.limits WHERE scope = %s", (scope,)).fetchone()


def test_a_grant_moves_every_limit_by_its_own_share(database: Database) -> None:
    limits = [Limit(scope="installation", rate=0.01), Limit(scope="campaign:1", rate=0.002)]
    with database.transaction() as transaction:
        grant = take(transaction, limits, 10)
    assert grant.granted
    assert 990 < ahead(database, "installation") <= 1000
    assert 4990 < ahead(database, "campaign:1") <= 5000


def test_no_grant_starts_further_ahead_than_its_bound_and_none_moves_a_limit_then(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=0.001)]
    with database.transaction() as transaction:
        assert take(transaction, limits, 1).granted
    before = free_at(database, "campaign:1")
    with database.transaction() as transaction:
        refused = take(transaction, limits, 1)
    assert not refused.granted
    assert 990 < refused.delay <= 1000
    assert free_at(database, "campaign:1") == before


def test_the_tightest_limit_decides_for_all(database: Database) -> None:
    slow, fast = Limit(scope="app:1", rate=0.001), Limit(scope="campaign:1", rate=1000.0)
    with database.transaction() as transaction:
        assert take(transaction, [slow, fast], 1).granted
    with database.transaction() as transaction:
        assert not take(transaction, [slow, fast], 1).granted
    with database.transaction() as transaction:
        assert take(transaction, [fast], 1).granted


def test_unused_time_is_not_banked(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=0.01)]
    with database.transaction() as transaction:
        take(transaction, limits, 1)
        transaction.execute("UPDATE {s}.limits SET free_at = now() - interval '1 hour'")
    with database.transaction() as transaction:
        assert take(transaction, limits, 1).granted
    assert 90 < ahead(database, "campaign:1") <= 100
    with database.transaction() as transaction:
        assert not take(transaction, limits, 1).granted  # the lost hour buys nothing


def test_workers_that_ask_at_once_share_one_rate(database: Database) -> None:
    limits = [Limit(scope="installation", rate=100.0), Limit(scope="campaign:1", rate=50.0)]
    stopped = threading.Event()

    def work(_: int) -> int:
        return sum(take_grant(database, lambda: limits, 5, stopped).pushes for _ in range(5))

    with database.transaction() as transaction:
        take(transaction, limits, 0)
        (start,) = transaction.execute("SELECT clock_timestamp()").fetchone() or (None,)
    with ThreadPoolExecutor(4) as pool:
        pushes = sum(pool.map(work, range(4)))
    with database.transaction() as transaction:
        (seconds,) = transaction.execute(
            "SELECT extract(epoch FROM free_at - %s)::float8 FROM {s}.limits WHERE scope = 'campaign:1'", (start,)
        ).fetchone() or (0,)
    assert pushes == 4 * 5 * 2  # a twentieth of 50 a grant
    assert seconds >= pushes / 50 - lateness(50) - 0.001  # never faster than the rate


def test_a_stop_ends_the_waiting(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=1.0)]
    stopped = threading.Event()
    assert take_grant(database, lambda: limits, 1, stopped).pushes == 1
    threading.Timer(0.2, stopped.set).start()
    assert take_grant(database, lambda: limits, 1, stopped, patience=60.0) == Leave(pushes=0)


def test_a_lifted_limit_lets_a_waiting_worker_go(database: Database) -> None:
    current: list[list[Limit]] = [[Limit(scope="campaign:1", rate=0.7)]]
    stopped = threading.Event()
    assert take_grant(database, lambda: current[0], 1, stopped).pushes == 1
    threading.Timer(0.2, lambda: current.__setitem__(0, [])).start()
    assert take_grant(database, lambda: current[0], 7, stopped, patience=60.0).pushes == 7


@pytest.mark.parametrize(
    ("installation", "app", "campaign", "scopes"),
    [
        (None, None, None, []),
        (9.0, None, 1.0, ["installation", "campaign:7"]),
        (9.0, 5.0, 1.0, ["installation", "app:3", "campaign:7"]),
    ],
)
def test_limits_come_in_the_order_in_which_their_rows_are_locked(
    installation: float | None, app: float | None, campaign: float | None, scopes: list[str]
) -> None:
    found = limits_of(installation=installation, app_id=3, app=app, campaign_id=7, campaign=campaign)
    assert [limit.scope for limit in found] == scopes
