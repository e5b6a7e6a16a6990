"""Grants: leave to issue pushes, taken in one statement over every limit that applies, wherever the worker runs.

A limit's row says when its next push may go (`free_at`). A grant starts at the latest of those and moves each of them
on by its own share; unused time is not banked, so that no burst follows a pause. The rows are locked in the order in
which the scopes are given: installation, app, campaign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sender.policy.pace import GRANT_AHEAD, GRANT_SHARE
from sender.store.database import Transaction

INSTALLATION = "installation"

_GRANT = """
WITH wanted AS (
    SELECT scope, rate, ordinal
    FROM unnest(%(scopes)s::text[], %(rates)s::float8[]) WITH ORDINALITY AS w(scope, rate, ordinal)
), locked AS (
    SELECT l.scope, w.rate, l.free_at FROM wanted w JOIN {s}.limits l USING (scope) ORDER BY w.ordinal FOR UPDATE OF l
), known AS (
    SELECT scope, least(%(pushes)s / rate, %(longest)s) AS seconds,
           -- further ahead than a grant at this rate reaches, it was written at a lower rate or by another clock
           least(free_at, clock_timestamp() + make_interval(secs => %(ahead)s + least(greatest(1 / rate, %(share)s),
                                                                                      %(longest)s))) AS free_at
    FROM locked
), start AS (
    SELECT clock_timestamp() AS now, greatest(clock_timestamp(), max(free_at)) AS at, count(*) AS found FROM known
), moved AS (
    UPDATE {s}.limits l SET free_at = start.at + make_interval(secs => known.seconds)
    FROM known, start
    WHERE l.scope = known.scope AND start.found = %(limits)s
      AND start.at <= start.now + make_interval(secs => %(ahead)s)
    RETURNING 1
)
SELECT start.found, extract(epoch FROM start.at - start.now)::float8, (SELECT count(*) FROM moved) FROM start
"""

#: Seconds that one push can take at the most: intervals have their bounds.
_LONGEST = 1e9

_CREATE = "INSERT INTO {s}.limits (scope) SELECT unnest(%s::text[]) ON CONFLICT DO NOTHING"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A scope (installation, app:ID, campaign:ID) and its rate in pushes a second."""

    scope: str
    rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """`granted`: whether the pushes may go, `delay` seconds from now. Otherwise ask again in `delay` seconds."""

    granted: bool
    delay: float


def take(transaction: Transaction, limits: Sequence[Limit], pushes: int) -> Grant:
    """Ask for leave to issue `pushes` pushes under all the limits together; see `sender.policy.pace.grant_size`."""
    values = {
        "scopes": [limit.scope for limit in limits],
        "rates": [limit.rate for limit in limits],
        "limits": len(limits),
        "pushes": pushes,
        "ahead": GRANT_AHEAD,
        "share": GRANT_SHARE,
        "longest": _LONGEST,
    }
    for _ in range(2):
        row = transaction.execute(_GRANT, values).fetchone()
        found, delay, moved = row or (0, None, 0)
        if found == len(limits):
            return _grant(float(delay), moved > 0)
        transaction.execute(_CREATE, (values["scopes"],))
    return Grant(granted=False, delay=0.05)


def _grant(delay: float, granted: bool) -> Grant:
    return Grant(granted=granted, delay=max(0.0, delay if granted else delay - GRANT_AHEAD))
