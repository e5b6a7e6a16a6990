"""How many pushes a grant may hold, and how large a batch may be, at a rate. Pure; the grants live in PostgreSQL."""

from __future__ import annotations

#: A grant holds at most this share of a second's pushes, so that workers share a rate smoothly.
GRANT_SHARE = 1 / 20

#: A grant may start at most this many seconds ahead; a worker that would have to wait longer asks again later.
GRANT_AHEAD = 0.25


def grant_size(rate: float | None, wanted: int) -> int:
    """How many of the `wanted` pushes one grant may hold at `rate` pushes a second (None: unlimited). At least 1."""
    if rate is None:
        return wanted
    return max(1, min(wanted, int(rate * GRANT_SHARE)))


def batch_size(rate: float | None, wanted: int) -> int:
    """The size of a batch at a rate: a twentieth of a second's pushes, so that no worker sits on many."""
    return grant_size(rate, wanted)
