"""Leave to issue: takes grants from the database for a worker, and waits for them where it can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sender.policy.pace import grant_size
from sender.store import limits
from sender.store.database import Database
from sender.store.limits import INSTALLATION, Limit


def limits_of(
    *, installation: float | None, app_id: int, app: float | None, campaign_id: int, campaign: float | None
) -> list[Limit]:
    """The limits that apply to a push, in the order in which their rows are locked."""
    named = ((INSTALLATION, installation), (f"app:{app_id}", app), (f"campaign:{campaign_id}", campaign))
    return [Limit(scope=scope, rate=rate) for scope, rate in named if rate is not None]


def take_grant(
    database: Database, current: Callable[[], Sequence[Limit]], wanted: int, stopped: threading.Event
) -> int:
    """Wait for leave to issue up to `wanted` pushes; returns how many may go now, 0 when `stopped` was set first.

    `current` is asked again at every try, so that a changed rate counts at once.
    """
    while not stopped.is_set():
        now = current()
        if not now:
            return wanted
        pushes = grant_size(min(limit.rate for limit in now), wanted)
        with database.transaction() as transaction:
            grant = limits.take(transaction, now, pushes)
        if stopped.wait(grant.delay if grant.granted else min(grant.delay + 0.005, 1.0)):
            return 0
        if grant.granted:
            return pushes
    return 0
