"""What one worker process sees of one credential: the tallies of its last seconds, and what they come to."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from sender.policy.breaker import CALM_AFTER, Signal, Tally, judge
from sender.store.breakers import Breaker

if TYPE_CHECKING:
    from sender.apns.health import Health

#: Seconds between two looks: after one of them a breaker that another worker opened is known here.
INTERVAL = 0.5

#: Seconds of which the tallies are judged together.
WINDOW = 10.0

#: Seconds after its last claim for which a process goes on watching.
LINGER = 10.0

#: Seconds by which a look is late when the process itself stood still (stopped, suspended, starved of time); and for
#: how many after that what it missed says nothing of APNs.
STOOD_STILL, EXCUSED = 2.0, 2.0

#: Seconds for which it is remembered how fast a credential went before its trouble.
REMEMBERED = 120.0


class Window:
    """The tallies of one credential's last seconds, since its last signal."""

    def __init__(self) -> None:
        self._before: Health | None = None
        self._ticks: deque[tuple[float, float, Tally]] = deque()  # (at, seconds, what was seen)
        self._last = time.monotonic()
        self._best = (0.0, 0.0)  # (at, pushes a second)
        self._closed_at = self._deadlines_from = -math.inf  # of the last rest: its end, and of what was sent before it
        self._connected_at = -math.inf  # when there was a connection last
        self._pace: float | None = None  # at the last look
        self._silence: tuple[int, float] | None = None  # deadlines since anything was answered, and when the first was
        self.alone = False  # this process cannot connect, and others are answered

    def add(self, health: Health | None, noted: Tally, *, excused: bool = False) -> Tally:
        """Take in what happened since the last look; returns it. What happened while nobody looked is no news.

        `excused`: this process stood still; deadlines passed and connections ended without APNs having to do with it.
        """
        now = time.monotonic()
        if now - self._last > LINGER:
            self.reset()
            self._before = health or self._before
        seen = noted if health is None else merged(noted, health, self._before)
        if now < self._deadlines_from:
            seen = replace(seen, unanswered=0)
        if excused:
            seen = replace(seen, unanswered=0, lost=0)
        seen = self._hear(seen, now)
        if health is not None and health.connections:
            self._connected_at = now
        self._before = health or self._before
        self._ticks.append((now, now - self._last, seen))
        self._last = now
        while now - self._ticks[0][0] > WINDOW:
            self._ticks.popleft()
        rate = self.rate()
        if rate >= self._best[1] or now - self._best[0] > REMEMBERED:
            self._best = (now, rate)
        return seen

    def _hear(self, seen: Tally, now: float) -> Tally:
        """With how long nothing was answered, if a deadline has passed now."""
        if seen.answered:
            self._silence = None
        if seen.answered or not seen.unanswered:
            return seen
        count, since = self._silence or (0, now)
        self._silence = (count + seen.unanswered, since)
        return replace(seen, silent=self._silence[0], silent_for=now - since)

    def judge(self, known: Breaker) -> Signal:
        """What the last tick, or all of them, say of a credential whose breaker is closed. Failures to connect say
        nothing when they are this host's alone, nor in the first moments after a rest, in which that shows."""
        self._compare(known.pace)
        if not self._ticks:
            return judge(Tally(), Tally())
        last, window = self._ticks[-1][2], sum((seen for _, _, seen in self._ticks), Tally())
        if self.alone or self._last - self._closed_at < CALM_AFTER:
            last, window = replace(last, failures=0), replace(window, failures=0)
        return judge(last, window)

    def _compare(self, pace: float | None) -> None:
        """A pace climbs while somebody is answered: if this process has tried for a while in vain, others are."""
        climbed = pace is not None and self._pace is not None and pace > self._pace
        self._pace = pace
        without = self._last - self._connected_at
        fails = without > 0 and self._before is not None and self._before.failures_in_a_row > 0
        self.alone = fails and (self.alone or (climbed and without >= CALM_AFTER))

    def rate(self) -> float:
        """Pushes answered in a second, at the best of the window: of two looks together, since one is too short."""
        pairs = zip(self._ticks, list(self._ticks)[1:], strict=False)
        return max(
            ((a.answered + b.answered) / (s + t) for (_, s, a), (_, t, b) in pairs if s + t > INTERVAL / 2), default=0.0
        )

    @property
    def best(self) -> float:
        """The same of the last minutes."""
        return self._best[1]

    @property
    def down(self) -> bool:
        """Whether this process could not connect, at the last look."""
        return self._before is not None and self._before.down

    @property
    def cause(self) -> str:
        """The last one that a connection named."""
        return self._before.last_cause if self._before else ""

    @property
    def busy(self) -> bool:
        """Whether anything was answered at the last look."""
        return bool(self._ticks) and self._ticks[-1][2].answered > 0

    def reset(self) -> None:
        """Begin anew."""
        self._ticks.clear()
        self._silence = None

    def begin_after_rest(self, timeout: float) -> None:
        """The breaker closed: what was seen before is no news, nor what was sent before, with so many seconds for its
        answer."""
        self.reset()
        self.alone = False
        self._closed_at, self._deadlines_from = self._last, self._last + timeout

    def forget(self) -> None:
        """The signal was taken in: what it was made of counts no more, but how fast it went does."""
        self._ticks = deque((at, seconds, Tally(answered=seen.answered)) for at, seconds, seen in self._ticks)
        self._silence = None


def merged(noted: Tally, health: Health, before: Health | None) -> Tally:
    """A tally with what the connections counted since the look before."""
    counts = health.counts
    old = before.counts if before is not None else {}

    def since(name: str) -> int:
        return max(0, counts.get(name, 0) - old.get(name, 0))

    return replace(
        noted,
        answered=max(0, health.answered - (before.answered if before is not None else 0)),
        refused=since("refused"),
        unanswered=since("unanswered"),
        failures=since("failures"),
        goaways=since("goaway_errors"),
        lost=since("broken"),
        limit_falls=since("limit_falls"),
        down=health.down,
        unreachable_for=health.unreachable_for,
        cause=health.last_cause,
    )
