"""What beat does: tick starts what is due and keeps campaigns moving, sweep mends and finishes. Both expire, so that a
pile of them after an outage is dropped.

They are due by a clock that never steps: by the host's own, beat would stand still for as long as that is set back.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from celery.schedules import schedule as Every  # noqa: N812 - a class

from sender.engine.leases import lease_clock

TICK_SECONDS = 1.0
SWEEP_SECONDS = 1.0

#: In memory, unlike Celery's default: what a clock that begins with the machine's start said means nothing afterwards.
SCHEDULER = "celery.beat:Scheduler"


def schedule() -> dict[str, dict[str, Any]]:
    """Celery's `beat_schedule`."""
    return {
        "tick": {"task": "sender.tick", "schedule": _every(TICK_SECONDS), "options": {"expires": 60}},
        "sweep": {"task": "sender.sweep", "schedule": _every(SWEEP_SECONDS), "options": {"expires": 60}},
    }


def _every(seconds: float) -> Every:
    return Every(seconds, nowfun=_steady_now)


def _steady_now() -> datetime:
    return datetime.fromtimestamp(lease_clock(), UTC)
