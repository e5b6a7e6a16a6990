"""Grants: leave to issue pushes, taken in one statement over every limit that applies, wherever the worker runs.

A limit's row says when its next push may go (`free_at`). A grant starts at the latest of those, and moves each of them
on by its own share, from its own time: a limit that could have gone earlier loses nothing by one that could not. Unused
time is not banked, so that no burst follows a pause; only a small lateness is forgiven, so that delays of milliseconds
do not add up. A campaign's own limit, under which nothing else is, moves on from the start itself: what another limit
has put off is not made up for when that one is lifted. In the same way all others move on from the installation's time
at least: nothing goes before that. The rows are locked in the order in which the scopes are given:
installation, app, campaign, the pace of a credential, and the campaign's share last.

A campaign's share of what it shares with others is kept in the same way, and limits nothing: the more of its share it
has had, the less far ahead it is given a place. So those who are behind find one before those who are not, and these
have what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sender.policy.pace import GRANT_AHEAD, GRANT_SHARE, LONGEST_TURN, PASSED_AHEAD, SHARE_AHEAD, URGENT_AHEAD, lateness
from sender.store.database import Transaction

INSTALLATION = "installation"

_GRANT = """
WITH wanted AS (
    SELECT * FROM unnest(%(scopes)s::text[], %(rates)s::float8[], %(lates)s::float8[], %(aheads)s::float8[],
                         %(furthests)s::float8[], %(shared)s::bool[], %(fair)s::bool[])
             WITH ORDINALITY AS w(scope, rate, late, ahead, furthest, shared, fair, ordinal)
), locked AS (
    SELECT w.*, l.free_at FROM wanted w JOIN {s}.limits l USING (scope)
    WHERE (SELECT count(*) FROM {s}.limits WHERE scope = ANY(%(scopes)s)) = %(limits)s  -- else none is held: see take
    ORDER BY w.ordinal FOR UPDATE OF l
), clock AS MATERIALIZED (
    SELECT clock_timestamp() AS now, count(*) AS found FROM locked  -- looked at when all of them are locked
), own AS (
    SELECT scope, late, ahead, shared, fair, least(%(pushes)s / rate, %(longest)s) AS seconds,
           -- further ahead than any grant at this rate reaches, it was written at a lower rate or by another clock
           greatest(least(free_at, clock.now + make_interval(secs => furthest)),
                    clock.now - make_interval(secs => late)) AS free_at
    FROM locked, clock
), share AS (
    SELECT turn, CASE WHEN turn IS NOT NULL THEN
               greatest(%(least_ahead)s, least(%(most_ahead)s, %(most_ahead)s - turn * %(slope)s)) END AS ahead
    FROM (SELECT max(extract(epoch FROM own.free_at - clock.now))::float8 AS turn FROM own, clock WHERE own.fair) AS t
), start AS (
    SELECT clock.found, extract(epoch FROM greatest(max(own.free_at) - clock.now, '0'))::float8 AS delay,
           max(extract(epoch FROM own.free_at - clock.now)
               - least(own.ahead, CASE WHEN own.shared THEN share.ahead END))::float8 AS beyond,
           max(own.free_at) AS at, max(own.free_at) FILTER (WHERE own.scope = %(whole)s) AS whole_at,
           coalesce(share.turn, 0) - %(granted_ahead)s AS passed
    FROM clock, own, share WHERE NOT own.fair GROUP BY clock.found, clock.now, share.turn
), moved AS (
    UPDATE {s}.limits l SET free_at = make_interval(secs => own.seconds) + CASE
        WHEN own.fair THEN own.free_at
        WHEN own.shared THEN greatest(own.free_at, start.whole_at - make_interval(secs => own.late))
        ELSE greatest(own.free_at, start.at - make_interval(secs => own.late)) END
    FROM own, start
    WHERE l.scope = own.scope AND start.found = %(limits)s AND start.beyond <= 0
    RETURNING 1
)
SELECT start.found, start.delay, start.beyond, start.passed, (SELECT count(*) FROM moved) FROM start
"""

#: Seconds that one push can take at the most: intervals have their bounds.
_LONGEST = 1e9

_SHARE = "/share"

_CREATE = "INSERT INTO {s}.limits (scope) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A scope (installation, app:ID, campaign:ID, credential:IDENTITY; or campaign:ID/share, which limits nothing) and
    its rate in pushes a second."""

    scope: str
    rate: float

    @property
    def shared(self) -> bool:
        """Whether more than one campaign is under it."""
        return not self.scope.startswith("campaign:")

    @property
    def fair(self) -> bool:
        """Whether it is a campaign's share of the others."""
        return not self.shared and self.scope.endswith(_SHARE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """`granted`: whether the pushes may go, `delay` seconds from now. Otherwise ask again in `delay` seconds.

    `passed`: the campaign has had its share, and it was for its rivals' sake that it got nothing.
    """

    granted: bool
    delay: float
    passed: bool = False


def share_of(campaign_id: int, rate: float) -> Limit:
    """The share of a campaign in what it shares with others."""
    return Limit(scope=f"campaign:{campaign_id}{_SHARE}", rate=rate)


def take(
    transaction: Transaction,
    limits: Sequence[Limit],
    pushes: int,
    *,
    ahead: float = GRANT_AHEAD,
    urgent: bool = False,
) -> Grant:
    """Ask for leave to issue `pushes` pushes under all the limits together; see `sender.policy.pace.grant_size`. Meant
    for `Database.statements`: whoever holds a limit's row holds up everybody under it.

    `ahead`: seconds by which the start may lie ahead. An urgent one may be given a place further ahead in the limits
    that it shares with others, so that those who ask again and again do not overtake it.
    """
    rates = [limit.rate for limit in limits]
    values = {
        "scopes": [limit.scope for limit in limits],
        "rates": rates,
        "lates": [lateness(rate) for rate in rates],
        "aheads": [URGENT_AHEAD if urgent and limit.shared else ahead for limit in limits],
        "furthests": [_furthest(limit, pushes) for limit in limits],
        "shared": [limit.shared for limit in limits],
        "fair": [limit.fair for limit in limits],
        "limits": len(limits),
        "whole": INSTALLATION,
        "least_ahead": PASSED_AHEAD,
        "most_ahead": SHARE_AHEAD,
        "granted_ahead": GRANT_AHEAD,
        "slope": (SHARE_AHEAD - PASSED_AHEAD) / GRANT_AHEAD,
        "pushes": pushes,
        "longest": _LONGEST,
    }
    # Rows that are missing are written before any is held, and all in the same order: nobody waits crosswise.
    for _ in range(2):
        found, delay, beyond, passed, moved = transaction.execute(_GRANT, values).fetchone() or (0, 0.0, 0.0, 0.0, 0)
        if found == len(limits):
            if moved:
                return Grant(granted=True, delay=delay)
            return Grant(granted=False, delay=max(beyond, min(passed, LONGEST_TURN)), passed=passed > 0)
        transaction.execute(_CREATE, (values["scopes"],))
    return Grant(granted=False, delay=0.05)


def _furthest(limit: Limit, pushes: int) -> float:
    """Seconds ahead beyond which what is written of a limit is not believed. That of a share is forgiven: what a
    campaign had because nobody else wanted it is not held against it for long."""
    if limit.fair:
        return min(GRANT_AHEAD + pushes / limit.rate, _LONGEST)
    return min(URGENT_AHEAD + max(1 / limit.rate, GRANT_SHARE), _LONGEST)
