"""Campaigns that share limits, on a real PostgreSQL with a clock of the test's own: who gets how much when many ask."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from math import inf
from typing import Any

import pytest

from sender.policy.pace import grant_size
from sender.policy.sharing import Wanting, fair_shares
from sender.store import limits
from sender.store.database import Database
from sender.store.limits import Limit, share_of, take

#: Seconds of the test's clock between two rounds in which everybody may ask who has something to send.
STEP = 0.02

#: What a second may hold above its rate.
EXCESS = 1.1


@dataclass
class Asker:
    """A campaign with so many batches at the workers, each of which asks for its next grant when it is time."""

    wanting: Wanting
    batches: int = 3
    since: float = 0.0
    until: float = inf
    silent: bool = False  # counted as one who wants something, and asks for nothing
    urgent: bool = False
    times: list[float] = field(default_factory=list)
    starts: list[tuple[float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.times = [0.0] * self.batches


class World:
    """Campaigns under common limits; every round the batches whose time has come ask, each from a thread."""

    def __init__(self, database: Database, askers: Sequence[Asker], installation: float | None = None) -> None:
        self.database = database
        self.askers = askers
        self.installation = installation
        self.random = random.Random(1)
        with database.transaction() as transaction:
            row = transaction.execute("SELECT extract(epoch FROM now())::float8 + 5").fetchone()
        assert row is not None
        self.zero = row[0]

    def run(self, seconds: float) -> None:
        with ThreadPoolExecutor(4) as pool:
            for turn in range(round(seconds / STEP)):
                now = turn * STEP
                there = [asker for asker in self.askers if asker.since <= now < asker.until]
                shares = fair_shares([asker.wanting for asker in there], self.installation)
                asking = [
                    (asker, at)
                    for asker in there
                    for at in range(0 if asker.silent else asker.batches)
                    if asker.times[at] <= now
                ]
                self.random.shuffle(asking)
                list(pool.map(lambda one: self.ask(*one, now, shares), asking))

    def ask(self, asker: Asker, at: int, now: float, shares: dict[int, float]) -> None:
        one = asker.wanting
        named = (
            ("installation", self.installation),
            (f"app:{one.app_id}", one.app_rate),
            (f"campaign:{one.id}", one.rate),
        )
        binding = [Limit(scope=scope, rate=rate) for scope, rate in named if rate is not None]
        share = [share_of(one.id, shares[one.id])] if one.id in shares and not asker.urgent else []
        pushes = grant_size(min(limit.rate for limit in binding), 500)
        with self.database.transaction() as transaction:
            transaction.execute("SELECT set_config('sender.now', %s, true)", (str(self.zero + now),))
            grant = take(transaction, [*binding, *share], pushes, urgent=asker.urgent)
        if grant.granted:
            asker.starts.append((now + grant.delay, pushes))
        asker.times[at] = now + grant.delay + self.random.random() * STEP

    def sent(self, asker: Asker, since: float, until: float) -> float:
        """Pushes a second that a campaign started in that time."""
        return sum(pushes for start, pushes in asker.starts if since <= start < until) / (until - since)

    def assert_fair(self, since: float, until: float) -> None:
        """Each has nine tenths of its fair share or more, but for a grant; and nothing is left over."""
        there = [asker for asker in self.askers if asker.since <= since and until <= asker.until]
        shares = fair_shares([asker.wanting for asker in there], self.installation)
        for asker in there:
            one = asker.wanting
            limits = (shares.get(one.id), one.rate, one.app_rate, self.installation)
            fair = min(rate for rate in limits if rate is not None)
            grant = asker.starts[0][1] / (until - since)
            assert self.sent(asker, since, until) >= 0.9 * fair - grant, (one, fair)

    def assert_full(self, rate: float, since: float, until: float, askers: Sequence[Asker] | None = None) -> None:
        """Nothing of a limit is left over, and it is never passed."""
        askers = self.askers if askers is None else askers
        assert sum(self.sent(asker, since, until) for asker in askers) >= 0.97 * rate
        assert_never_passed(rate, askers)


def assert_never_passed(rate: float, askers: Sequence[Asker]) -> None:
    """No second of starts holds more than the rate, and what of one or two grants reaches into that second."""
    starts = sorted((start, pushes) for asker in askers for start, pushes in asker.starts)
    for first, _ in starts:
        assert sum(pushes for start, pushes in starts if first <= start < first + 1.0) <= EXCESS * rate, first


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = "to_timestamp(current_setting('sender.now')::float8)"
    monkeypatch.setattr(limits, "_GRANT", limits._GRANT.replace("clock_timestamp()", now))


def campaigns(*rates: float | None, app_id: int = 1, app_rate: float | None = 200.0, **options: Any) -> list[Asker]:
    """Campaigns of an app, by their own limits."""
    return [
        Asker(
            Wanting(id=next(_ids), app_id=app_id, rate=rate, app_rate=app_rate),
            batches=4 if rate is None else 8,
            **options,
        )
        for rate in rates
    ]


_ids = count(1)


def test_those_who_have_not_had_their_share_find_a_place_where_those_who_have_do_not(database: Database) -> None:
    app, mine, other = Limit(scope="app:1", rate=100.0), share_of(1, 10.0), share_of(2, 10.0)
    with database.transaction() as transaction:  # in which no time passes
        transaction.execute("SELECT set_config('sender.now', (extract(epoch FROM now()) + 5)::text, true)")
        assert take(transaction, [app, mine], 5).granted  # half a second of its share, a twentieth of the limit
        assert take(transaction, [app], 8).granted
        refused = take(transaction, [app, mine], 5)
        assert (refused.granted, refused.passed) == (False, True)
        assert refused.delay == pytest.approx(0.2)  # when its turn comes, and not when the limit would let it go
        assert take(transaction, [app, other], 5).granted
        assert take(transaction, [app], 5).granted


@pytest.mark.parametrize("rates", [(*[None] * 6, 20.0, 0.5), (None, 20.0, 0.5), (None, None), (150.0, 90.0, 5.0)])
def test_each_campaign_has_its_fair_share_and_none_of_the_limit_is_left(
    database: Database, rates: tuple[float | None, ...]
) -> None:
    world = World(database, campaigns(*rates))
    world.run(4.5)
    world.assert_fair(0.5, 4.5)
    world.assert_full(200.0, 0.5, 4.5)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_campaigns_there_are_each_has_its_share(database: Database, seed: int) -> None:
    draw = random.Random(seed)
    rates = [draw.choice([None, None, draw.uniform(20, 200), draw.uniform(0.5, 20)]) for _ in range(draw.randint(2, 8))]
    rate = draw.choice([100.0, 400.0, 2000.0])
    world = World(database, [*campaigns(None, app_rate=rate), *campaigns(*rates, app_rate=rate)])
    world.run(3.5)
    world.assert_fair(0.5, 3.5)
    world.assert_full(rate, 0.5, 3.5)


def test_what_an_app_cannot_use_of_the_installation_goes_to_the_others(database: Database) -> None:
    small = campaigns(None, None, 5.0, app_rate=60.0)
    large = campaigns(None, 40.0, app_id=2, app_rate=None)
    world = World(database, [*small, *large], installation=200.0)
    world.run(3.5)
    world.assert_fair(0.5, 3.5)  # 27.5, 27.5 and 5; 100 and 40
    world.assert_full(200.0, 0.5, 3.5)
    assert_never_passed(60.0, small)


def test_shares_follow_those_who_come_and_go(database: Database) -> None:
    stays, comes, slow = campaigns(None), campaigns(None, None, since=1.0, until=3.0), campaigns(10.0, since=1.0)
    world = World(database, [*stays, *comes, *slow])
    world.run(4.5)
    world.assert_full(200.0, 0.5, 4.5)
    world.assert_fair(1.25, 3.0)
    world.assert_fair(3.25, 4.5)


def test_what_is_kept_for_one_who_does_not_come_is_not_lost(database: Database) -> None:
    busy, silent = campaigns(None, 10.0), campaigns(None, None, None, silent=True)
    world = World(database, [*busy, *silent])
    world.run(2.5)
    world.assert_full(200.0, 0.5, 2.5, busy)
    assert world.sent(busy[1], 0.5, 2.5) >= 9.0


def test_a_campaign_pays_a_moment_at_the_most_for_what_nobody_else_wanted(database: Database) -> None:
    rivals = campaigns(None, None, None, since=2.0)
    busy, silent = campaigns(None), campaigns(None, None, None, silent=True, until=2.0)
    world = World(database, [*busy, *silent, *rivals])
    world.run(4.5)
    world.assert_fair(2.75, 4.5)


def test_urgent_pushes_find_their_place_before_everybody(database: Database) -> None:
    hogs, urgent = campaigns(*[None] * 4), campaigns(15.0, urgent=True)
    world = World(database, [*hogs, *urgent])
    world.run(2.5)
    assert world.sent(urgent[0], 0.5, 2.5) >= 14.0
    world.assert_full(200.0, 0.5, 2.5)
