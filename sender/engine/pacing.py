"""Leave to issue: takes grants from the database for a worker, and waits for them where it can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sender.policy.pace import grant_size
from sender.store import limits
from sender.store.database import Database
from sender.store.limits import INSTALLATION, Limit

#: Seconds for which a worker waits for its turn; if it is further off, the batch goes back to the database until then,
#: so that slow campaigns hold no threads.
PATIENCE = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """How many pushes may go now; if none, after how many seconds to come again (0: not at all, stopped)."""

    pushes: int
    wait: float = 0.0


def limits_of(
    *, installation: float | None, app_id: int, app: float | None, campaign_id: int, campaign: float | None
) -> list[Limit]:
    """The limits that apply to a push, in the order in which their rows are locked."""
    named = ((INSTALLATION, installation), (f"app:{app_id}", app), (f"campaign:{campaign_id}", campaign))
    return [Limit(scope=scope, rate=rate) for scope, rate in named if rate is not None]


def take_grant(
    database: Database, current: Callable[[], Sequence[Limit]], wanted: int, stopped: threading.Event
) -> Leave:
    """Wait for leave to issue up to `wanted` pushes. `current` is asked again at every try, so that a changed rate
    counts at once. No pushes when `stopped` was set first, or when the turn is further off than `PATIENCE`."""
    while not stopped.is_set():
        now = current()
        if not now:
            return Leave(pushes=wanted)
        pushes = grant_size(min(limit.rate for limit in now), wanted)
        with database.transaction() as transaction:
            grant = limits.take(transaction, now, pushes)
        if not grant.granted and grant.delay > PATIENCE:
            return Leave(pushes=0, wait=grant.delay)
        if stopped.wait(grant.delay if grant.granted else min(grant.delay + 0.005, 1.0)):
            break
        if grant.granted:
            return Leave(pushes=pushes)
    return Leave(pushes=0)
