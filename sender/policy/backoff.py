"""When to try again, as pure functions of the attempt and a random number from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

#: Seconds before a retry of a 5xx, a lost connection or an unanswered push: a few quick ones for a blip, then Apple's
#: advice of 15 minutes and more ("Handling notification responses from APNs", 503).
RETRY_STEPS: Sequence[float] = (1.0, 4.0, 15.0, 60.0, 900.0, 1800.0, 3600.0)

#: Seconds of a device's blocklisting after TooManyRequests: 15 minutes, doubling to 24 hours.
BLOCKLIST_FIRST = 900.0
BLOCKLIST_LONGEST = 86_400.0

#: Attempts that end a delivery even when it has not expired: docs/decisions/024-twelve-attempts.md.
MAX_ATTEMPTS = 12


def retry_delay(attempt: int, chance: float, *, scale: float = 1.0) -> float:
    """Seconds to wait after the `attempt`-th failed attempt (from 1): half fixed, half random."""
    step = RETRY_STEPS[min(max(attempt, 1), len(RETRY_STEPS)) - 1]
    return (step / 2 + step / 2 * chance) * scale


def blocklist_delay(times: int, chance: float, *, scale: float = 1.0) -> float:
    """Seconds for which a device rests after its `times`-th TooManyRequests in a row (from 1): half fixed, half
    random, doubling up to a day."""
    whole = min(BLOCKLIST_FIRST * 2.0 ** min(max(times, 1) - 1, 30), BLOCKLIST_LONGEST)
    return (whole / 2 + whole / 2 * chance) * scale
