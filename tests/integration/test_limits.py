"""Grants on a real PostgreSQL: how far they move the limits, not how long anything takes."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise

import pytest

from sender.engine.pacing import HOLDS, Leave, limits_of, take_grant
from sender.policy.pace import grant_size, lateness
from sender.store.database import Database
from sender.store.limits import Grant, Limit, take


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


def test_a_worker_that_stands_still_right_after_its_grant_holds_nobody_up(database: Database) -> None:
    limits = [Limit(scope="app:1", rate=100.0)]
    with database.statements() as mine:
        assert take(mine, limits, 1).granted
        with database.statements() as other:
            assert take(other, limits, 1).granted
    with database.transaction() as transaction:  # the connection is as it was
        assert not transaction.connection.autocommit


def test_an_interrupted_statement_leaves_no_connection_that_commits_by_itself(postgres_url: str) -> None:
    database = Database(postgres_url, schema="public", pool_size=1, any_version=True)
    with closing(database):
        with pytest.raises(KeyboardInterrupt), database.statements() as statements:
            statements.execute("BEGIN")
            raise KeyboardInterrupt
        with database.transaction() as transaction:
            assert not transaction.connection.autocommit
            assert transaction.execute("SELECT 1").fetchone() == (1,)


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


@pytest.mark.parametrize("rate", [0.2, 5.0, 333.3, 2000.0])
def test_a_rate_is_exact_over_a_minute_whoever_asks(
    database: Database, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    minute = 60.0
    monkeypatch.setattr("sender.store.limits.URGENT_AHEAD", minute)  # a minute is given out at once, and not waited for
    limits = [Limit(scope="installation", rate=rate * 1.5), Limit(scope="app:1", rate=rate)]
    size = grant_size(rate, 500)

    def ask(_: int) -> list[float]:
        """The starts of the grants that one worker gets, until there is none within the minute."""
        starts = []
        while True:
            with database.transaction() as transaction:
                if not take(transaction, limits, size, urgent=True).granted:
                    return starts
                row = transaction.execute(
                    "SELECT extract(epoch FROM free_at)::float8 FROM {s}.limits WHERE scope = 'app:1'"
                ).fetchone()
                assert row is not None
                starts.append(row[0] - size / rate)

    with ThreadPoolExecutor(8) as pool:
        starts = sorted(start for each in pool.map(ask, range(8)) for start in each)
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert min(gaps) >= size / rate - 1e-4  # never closer
    assert max(gaps) <= size / rate + 1e-4  # and nothing lost between
    seconds = starts[-1] - starts[0] + size / rate
    assert seconds >= minute - lateness(rate)
    assert abs(len(starts) * size - rate * seconds) <= max(0.02 * rate * seconds, 1)


def test_a_limit_that_could_go_earlier_loses_nothing_by_one_that_cannot(database: Database) -> None:
    app, slow = Limit(scope="app:1", rate=1000.0), Limit(scope="campaign:1", rate=5.0)
    with database.transaction() as transaction:
        for _ in range(2):  # the second one starts a fifth of a second from now
            assert take(transaction, [app, slow], 1).granted
        rows = transaction.execute("SELECT scope, extract(epoch FROM free_at)::float8 FROM {s}.limits").fetchall()
    free = dict(rows)
    assert free["campaign:1"] - free["app:1"] > 0.3


def test_what_another_limit_puts_off_is_not_made_up_for_when_that_one_is_lifted(database: Database) -> None:
    campaign, pace = Limit(scope="campaign:1", rate=1000.0), Limit(scope="credential:key", rate=5.0)
    for _ in range(2):  # the second one starts a fifth of a second from now
        with database.transaction() as transaction:
            assert take(transaction, [campaign, pace], 1).granted
    with database.transaction() as transaction:
        rows = transaction.execute("SELECT scope, extract(epoch FROM free_at)::float8 FROM {s}.limits").fetchall()
    free = dict(rows)
    start = free["credential:key"] - 1 / 5  # of the last push that was granted
    assert free["campaign:1"] == pytest.approx(start - lateness(1000) + 1 / 1000, abs=1e-3)


def test_what_the_installation_puts_off_is_not_made_up_for_by_an_app(database: Database) -> None:
    whole, app = Limit(scope="installation", rate=5.0), Limit(scope="app:1", rate=1000.0)
    for _ in range(2):  # the second one starts a fifth of a second from now
        with database.transaction() as transaction:
            assert take(transaction, [whole, app], 1).granted
    with database.transaction() as transaction:
        free = dict(transaction.execute("SELECT scope, extract(epoch FROM free_at)::float8 FROM {s}.limits").fetchall())
    start = free["installation"] - 1 / 5  # of the last push that was granted
    assert free["app:1"] == pytest.approx(start - lateness(1000) + 1 / 1000, abs=1e-3)


def test_a_small_delay_does_not_lower_a_slow_rate(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=0.01)]
    with database.transaction() as transaction:
        take(transaction, limits, 1)
        transaction.execute("UPDATE {s}.limits SET free_at = clock_timestamp() - interval '0.5 seconds'")
        assert take(transaction, limits, 1) == Grant(granted=True, delay=0.0)
    assert ahead(database, "campaign:1") < 99.6  # its next push comes when it would have come without the delay


def test_an_urgent_push_has_its_place_before_those_that_have_none(database: Database) -> None:
    app = [Limit(scope="app:1", rate=1.25)]
    with database.transaction() as transaction:
        assert take(transaction, app, 1).granted
        assert not take(transaction, app, 1).granted  # 0.8 seconds are further than a grant reaches
        urgent = take(transaction, app, 1, urgent=True)
        assert urgent.granted
        assert urgent.delay > 0.25
        assert take(transaction, app, 1).delay > 0.5  # behind it


def test_a_slow_rate_of_its_own_holds_no_thread_however_urgent_it_is(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=2.0)]
    with database.transaction() as transaction:
        assert take(transaction, limits, 1, urgent=True).granted
        assert not take(transaction, limits, 1, urgent=True).granted


def test_a_batch_that_was_held_for_long_goes_back_with_what_is_left_of_it(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=5.0)]
    stopped = threading.Event()
    assert take_grant(database, lambda: limits, 1, stopped).pushes == 1
    limits = [Limit(scope="campaign:1", rate=0.2)]
    assert take_grant(database, lambda: limits, 1, stopped).pushes == 1  # waited for
    left = take_grant(database, lambda: limits, 1, stopped, held=HOLDS)
    assert left.pushes == 0
    assert left.wait > 0


def test_a_batch_that_comes_in_vain_comes_less_often(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=2.0)]
    stopped = threading.Event()
    assert take_grant(database, lambda: limits, 1, stopped).pushes == 1
    first, later = (take_grant(database, lambda: limits, 1, stopped, tries=tries).wait for tries in (1, 3))
    assert later > 2 * first


def test_a_worker_that_stood_still_asks_anew_and_starts_no_burst(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=5.0)]

    class Frozen(threading.Event):
        """A worker whose process is stopped for a second while it waits for the start it was granted."""

        waited = 0
        woke = 0.0

        def wait(self, timeout: float | None = None) -> bool:
            self.waited += 1
            time.sleep((timeout or 0.0) + (1.0 if self.waited == 1 else 0.0))
            if self.waited == 1:
                self.woke = time.time()
            return self.is_set()

    assert take_grant(database, lambda: limits, 1, threading.Event()).pushes == 1
    frozen = Frozen()
    assert take_grant(database, lambda: limits, 1, frozen).pushes == 1
    assert frozen.waited == 2
    with database.transaction() as transaction:
        ((free,),) = transaction.execute("SELECT extract(epoch FROM free_at)::float8 FROM {s}.limits").fetchall()
    assert free > frozen.woke + 0.05  # of the time when it went, not of the one that it had missed


def test_a_stop_ends_the_waiting(database: Database) -> None:
    limits = [Limit(scope="campaign:1", rate=0.01)]
    stopped = threading.Event()
    assert take_grant(database, lambda: limits, 1, stopped).pushes == 1
    threading.Timer(0.2, stopped.set).start()
    assert take_grant(database, lambda: limits, 1, stopped, patience=600.0) == Leave(pushes=0)


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


def test_workers_that_ask_first_for_the_same_limits_at_once_do_not_wait_for_each_other_crosswise(
    database: Database,
) -> None:
    together = threading.Barrier(4, timeout=30)

    def ask(number: int) -> bool:
        app = [Limit(scope="app:1", rate=1e6)] if number % 2 else []
        installation = [Limit(scope="installation", rate=1e6)] if number % 4 >= 2 or not number % 2 else []
        campaign = Limit(scope=f"campaign:{number // 4}", rate=1e6)
        together.wait()
        with database.transaction() as transaction:
            return take(transaction, [*installation, *app, campaign], 1).granted

    for _ in range(3):
        with database.transaction() as transaction:
            transaction.execute("DELETE FROM {s}.limits")
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(ask, range(80)))
