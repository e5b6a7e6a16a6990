"""Fair shares are max-min fair, whatever the campaigns and their limits."""

from __future__ import annotations

from math import inf, isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.policy.sharing import SURPLUS, Wanting, fair_shares, next_surplus, runs_short, water_level

RATES = st.floats(0.01, 10_000.0)


@st.composite
def installations(draw: st.DrawFn) -> tuple[list[Wanting], float | None]:
    """Up to a dozen campaigns of up to three apps, and the limit of everything."""
    apps = draw(st.lists(st.none() | RATES, min_size=1, max_size=3))
    campaigns = []
    for id in range(draw(st.integers(1, 12))):
        app = draw(st.integers(0, len(apps) - 1))
        campaigns.append(Wanting(id=id, app_id=app, rate=draw(st.none() | RATES), app_rate=apps[app]))
    return campaigns, draw(st.none() | RATES)


def sent(campaigns: list[Wanting], installation: float | None) -> dict[int, float]:
    """What each campaign sends a second if nobody takes more than its share."""
    shares = fair_shares(campaigns, installation)
    limits = {one.id: (one.rate, one.app_rate, installation, shares.get(one.id)) for one in campaigns}
    return {id: min((rate for rate in found if rate is not None), default=inf) for id, found in limits.items()}


@given(installations())
def test_no_limit_is_passed_and_whoever_has_less_than_it_could_use_has_as_much_as_anybody_at_a_full_limit(
    drawn: tuple[list[Wanting], float | None],
) -> None:
    campaigns, installation = drawn
    found = sent(campaigns, installation)
    groups = [([one for one in campaigns if one.app_id == app], rate) for app, rate in _apps(campaigns).items()]
    groups.append((campaigns, installation))
    served: set[int] = {one.id for one in campaigns if one.rate is not None and isclose(found[one.id], one.rate)}
    for members, rate in groups:
        if rate is None:
            continue
        whole = sum(found[one.id] for one in members)
        assert whole <= rate * (1 + 1e-9)
        if isclose(whole, rate):  # full: those who have the most of it are stopped by it
            most = max(found[one.id] for one in members)
            served |= {one.id for one in members if isclose(found[one.id], most)}
    unlimited = {one.id for one in campaigns if (one.rate, one.app_rate, installation) == (None, None, None)}
    assert served | unlimited == {one.id for one in campaigns}


def _apps(campaigns: list[Wanting]) -> dict[int, float | None]:
    return {one.app_id: one.app_rate for one in campaigns}


def test_what_slow_campaigns_leave_is_shared_by_the_others() -> None:
    campaigns = [Wanting(id=id, app_id=1, rate=None, app_rate=200.0) for id in range(6)]
    slow = Wanting(id=6, app_id=1, rate=20.0, app_rate=200.0)
    assert fair_shares([*campaigns, slow], None) == dict.fromkeys(range(6), 30.0)


@pytest.mark.parametrize(("rate", "app_rate"), [(None, 200.0), (50.0, 200.0), (500.0, 200.0), (50.0, None)])
def test_a_campaign_that_has_its_limits_to_itself_has_no_share(rate: float | None, app_rate: float | None) -> None:
    assert fair_shares([Wanting(id=1, app_id=1, rate=rate, app_rate=app_rate)], None) == {}


def test_there_is_no_level_where_there_is_enough_for_all() -> None:
    assert water_level(10.0, [4.0, 6.0]) == inf
    assert water_level(None, [inf]) == inf
    assert water_level(10.0, [4.0, inf]) == 6.0


def test_a_campaign_that_runs_short_is_published_for_more_until_it_does_not() -> None:
    grown = next_surplus(next_surplus(SURPLUS, short=True), short=True)
    assert grown == 4 * SURPLUS
    assert next_surplus(grown, short=False) < grown
    assert next_surplus(SURPLUS, short=False) == SURPLUS


@pytest.mark.parametrize(
    ("left", "target", "wait", "short"),
    [(0, 10, 0.0, True), (6, 10, 0.0, True), (9, 10, 0.0, False), (0, 10, 0.1, False)],
)
def test_it_runs_short_when_its_batches_are_gone_and_the_limit_has_room(
    left: int, target: int, wait: float, short: bool
) -> None:
    assert runs_short(left, target, wait=wait) is short
