"""When a batch is suspected of breaking whoever sends it, and how its devices are told apart. Pure.

A batch that failed too often goes on as batches of one device. One of those that failed before is sent alone, so that
what breaks is what breaks by itself: the innocent are not convicted for the company that they were in when a worker
died.
"""

from __future__ import annotations

#: Failures (errors of our own, workers that died) after which the devices of a batch go one by one.
MOST_FAILURES = 5

#: Failures of a single device after which its delivery ends as failed.
MOST_FAILURES_ALONE = 5

#: Seconds by which batches that were taken back from a dead worker are strewn, times their failures before this one:
#: those that died together must not meet again.
STREWN = 3.0

#: Seconds before a batch that failed is offered again: doubling, up to a minute.
FIRST_DELAY, LONGEST_DELAY = 1.0, 60.0


def failure_delay(failures: int, *, scale: float = 1.0) -> float:
    """Seconds before the next try after `failures` failures before this one."""
    return min(FIRST_DELAY * 2.0 ** min(failures, 10), LONGEST_DELAY) * scale
