"""What beat does: tick starts what is due and keeps campaigns moving, sweep mends and finishes. Both expire, so that a
pile of them after an outage is dropped."""

from __future__ import annotations

from typing import Any

TICK_SECONDS = 1.0
SWEEP_SECONDS = 1.0


def schedule() -> dict[str, dict[str, Any]]:
    """Celery's `beat_schedule`."""
    return {
        "tick": {"task": "sender.tick", "schedule": TICK_SECONDS, "options": {"expires": 60}},
        "sweep": {"task": "sender.sweep", "schedule": SWEEP_SECONDS, "options": {"expires": 60}},
    }
