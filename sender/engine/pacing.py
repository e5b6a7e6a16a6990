"""Leave to issue: takes grants from the database for a worker, and waits for them where it can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sender.policy.pace import GRANT_AHEAD, LONGEST_BACK_OFF, LONGEST_TURN, back_off, grant_size
from sender.store import limits
from sender.store.database import Database
from sender.store.limits import INSTALLATION, Limit

#: Seconds for which a worker waits before it asks for a grant again; if its turn is further off, the batch goes back to
#: the database until then, so that slow campaigns hold no threads.
PATIENCE = 0.05

#: The same where the batch holds many more pushes than a grant, since it was cut at a higher rate: to come back for
#: each grant would be slower than the rate.
PATIENCE_FOR_MANY = 1.0

#: Seconds after which a worker that holds a batch waits for no further grant: a batch that was cut at a higher rate
#: goes back with what is left of it.
HOLDS = 3.0

#: Seconds by which a granted start may have passed when its time comes; a worker that stood still for longer asks
#: anew, so that what was granted to many is not issued all at once.
LATE = 0.1

#: Seconds after its time at which a batch is published again.
MARGIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """How many pushes may go now; if none, after how many seconds to come again (0: not at all, stopped)."""

    pushes: int
    wait: float = 0.0


def limits_of(
    *, installation: float | None, app_id: int, app: float | None, campaign_id: int | None, campaign: float | None
) -> list[Limit]:
    """The limits that apply to a push, in the order in which their rows are locked."""
    named = ((INSTALLATION, installation), (f"app:{app_id}", app), (f"campaign:{campaign_id}", campaign))
    return [Limit(scope=scope, rate=rate) for scope, rate in named if rate is not None]


def take_grant(
    database: Database,
    current: Callable[[], Sequence[Limit]],
    wanted: int,
    stopped: threading.Event,
    *,
    urgent: bool = False,
    held: float = 0.0,
    tries: int = 1,
    patience: float | None = None,
) -> Leave:
    """Wait for leave to issue up to `wanted` pushes. `current` is asked again at every try, so that a changed rate
    counts at once. No pushes when `stopped` was set first, or when the turn is further off than `patience` seconds
    (None: as suits the batch).

    `urgent` ones have their place before all that have none yet. `held`: seconds since the batch was claimed; `tries`:
    how often it was, since a batch that comes in vain comes less often.
    """
    ahead = GRANT_AHEAD if held < HOLDS else 0.0
    while not stopped.is_set():
        now = current()
        if not now:
            return Leave(pushes=wanted)
        pushes = grant_size(_tightest(now), wanted)
        asked = time.monotonic()
        with database.statements() as transaction:
            grant = limits.take(transaction, now, pushes, ahead=ahead, urgent=urgent)
        if not grant.granted and grant.delay > _patience(now, wanted, held, patience):
            longest = LONGEST_TURN if grant.passed else LONGEST_BACK_OFF
            return Leave(pushes=0, wait=back_off(grant.delay, tries, longest))
        if stopped.wait(grant.delay if grant.granted else grant.delay + 0.005):
            break
        if grant.granted and (not grant.delay or time.monotonic() - asked - grant.delay <= LATE):
            return Leave(pushes=pushes)
        ahead = 0.0  # no other start is missed
    return Leave(pushes=0)


def _patience(current: Sequence[Limit], wanted: int, held: float, given: float | None) -> float:
    if given is not None:
        return given
    return PATIENCE if held >= HOLDS or fits(current, wanted) else PATIENCE_FOR_MANY


def fits(current: Sequence[Limit], pushes: int) -> bool:
    """Whether so many pushes are about as many as a batch should hold at these limits: more were cut at a higher rate,
    and are given out by the fan-out, which knows how many of them are needed."""
    return pushes <= 2 * grant_size(_tightest(current), pushes)


def _tightest(current: Sequence[Limit]) -> float | None:
    return min((limit.rate for limit in current if not limit.fair), default=None)
