"""How campaigns share the limits that they have in common: max-min fair. Pure.

Nobody has more than it asks for, and nobody could have more without taking it from somebody who has no more than that:
what slow campaigns leave is shared equally by those that can use it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf

#: A campaign is published for this many times its fair share at the least: how much others leave is found out by
#: asking for it, and workers find something at every time.
SURPLUS = 1.25

#: Seconds that a shared limit's next push lies ahead while more is asked of it than it gives.
SATURATED = 0.05

#: What becomes of the factor at each look: more while all that was published was sent, less while it was not.
GROWTH, DECLINE = 2.0, 0.8

#: Of the batches that should be open, the share of which there may be left at a look if they went as they came: they
#: are cut for two and a half seconds, and a look is every second.
TAKEN = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanting:
    """A campaign that has pushes to send now, and the limits on it and its app (pushes a second; None: unlimited)."""

    id: int
    app_id: int
    rate: float | None
    app_rate: float | None


def water_level(rate: float | None, demands: Iterable[float]) -> float:
    """The most that anybody gets of `rate` pushes a second where each asks for so many; infinite when there is enough
    for all."""
    if rate is None:
        return inf
    left, asking = rate, sorted(demands)
    for place, demand in enumerate(asking):
        level = left / (len(asking) - place)
        if demand > level:
            return level
        left -= demand
    return inf


def fair_shares(wanting: Sequence[Wanting], installation: float | None) -> dict[int, float]:
    """The fair shares, in pushes a second, of the campaigns that others leave less than they could send alone."""
    by_app: dict[int, list[Wanting]] = defaultdict(list)
    for campaign in wanting:
        by_app[campaign.app_id].append(campaign)
    levels = {
        app_id: water_level(campaigns[0].app_rate, (_or_inf(campaign.rate) for campaign in campaigns))
        for app_id, campaigns in by_app.items()
    }
    whole = water_level(installation, (min(_or_inf(one.rate), levels[one.app_id]) for one in wanting))
    shares = {}
    for one in wanting:
        share = min(levels[one.app_id], whole)
        if share < min(map(_or_inf, (one.rate, one.app_rate, installation))):
            shares[one.id] = share
    return shares


def runs_short(left: int, target: int, *, wait: float) -> bool:
    """Whether others left a campaign all that it was published for: of the `target` batches that should be open so few
    are left, and the limits that it shares are `wait` seconds ahead."""
    return left <= target * TAKEN and wait < SATURATED


def next_surplus(surplus: float, *, short: bool) -> float:
    """By how much more than its fair share a campaign is published at the next look. It grows while those who are
    thought to share the limit leave some of it, whatever the cause."""
    return max(SURPLUS, surplus * (GROWTH if short else DECLINE))


def _or_inf(rate: float | None) -> float:
    return inf if rate is None else rate
