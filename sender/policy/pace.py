"""How many pushes a grant may hold, how large a batch may be, and how late a push may be, at a rate. Pure; the grants
live in PostgreSQL."""

from __future__ import annotations

#: Pushes a second that a limit may let go: at the least one in eleven days, since intervals have their bounds.
SLOWEST, FASTEST = 1e-6, 10_000_000.0

#: A grant holds at most this share of a second's pushes, so that workers share a rate smoothly.
GRANT_SHARE = 1 / 20

#: A grant may start at most this many seconds ahead; a worker that would have to wait longer asks again later.
GRANT_AHEAD = 0.25

#: An urgent push is given its place further ahead, in what it shares with others: before all who have none yet.
URGENT_AHEAD = 1.0

#: A campaign that could use more than its fair share of a shared limit may start this many seconds ahead at the most,
#: and less the more of its share it has had, down to this many. Those who ask for less than their share find a place
#: before all of them.
SHARE_AHEAD, PASSED_AHEAD = 0.2, 0.1

#: Audiences of at most this many devices do not wait behind campaigns: they go by the priority queue.
PRIORITY_AUDIENCE = 100

#: Seconds by which a refusal is stretched at the most; and that of a campaign which has had its fair share, and which
#: has more batches waiting for the next.
LONGEST_BACK_OFF, LONGEST_TURN = 1.0, 3.0

#: A grant that was asked for late does not move the next one by as much as this share of the time between two pushes,
#: within these seconds: small delays do not add up to a lower rate, and nothing worth the name of a burst is made up.
LATE_SHARE, LEAST_LATE, MOST_LATE = 0.5, 0.025, 1.0

#: Devices of a batch that costs more to be passed around than to be sent, at the most; and how many times as many of
#: such batches a worker has in flight as of others: together they are claimed and recorded for the price of a few.
SMALL, SMALL_TIMES = 50, 4


def is_rate(value: object) -> bool:
    """Whether something is a number of pushes a second that a limit may have."""
    return isinstance(value, int | float) and not isinstance(value, bool) and SLOWEST <= value <= FASTEST


def grant_size(rate: float | None, wanted: int) -> int:
    """How many of the `wanted` pushes one grant may hold at `rate` pushes a second (None: unlimited). At least 1."""
    if rate is None:
        return wanted
    return max(1, min(wanted, int(rate * GRANT_SHARE)))


def batch_size(rate: float | None, wanted: int) -> int:
    """The size of a batch at a rate: a twentieth of a second's pushes, so that no worker sits on many."""
    return grant_size(rate, wanted)


def back_off(delay: float, tries: int, longest: float = LONGEST_BACK_OFF) -> float:
    """Seconds after which a batch asks again that was told to ask in `delay` at its try number `tries`: there are more
    batches than turns when it comes in vain time and again."""
    return max(delay, min(delay * 2.0 ** min(max(tries, 1) - 1, 3), longest))


def expected_seconds(left: int, *, limit: float | None, measured: float | None) -> float | None:
    """Seconds that `left` pushes take at a limit and at the speed that was measured (pushes a second; None or 0:
    unknown). None when neither is known."""
    speeds = [speed for speed in (limit, measured) if speed]
    return left / min(speeds) if speeds else None


def lateness(rate: float) -> float:
    """Seconds by which a push may be asked for late without the next one moving, at `rate` pushes a second."""
    return min(max(LATE_SHARE / rate, LEAST_LATE), MOST_LATE)
