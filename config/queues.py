"""The queues, by role, and which task goes where. Never Celery's default queue: a shared Redis stays shared."""

from __future__ import annotations

from kombu.entity import Queue

from sender.settings import Settings

CONTROL, CAMPAIGN, PRIORITY = "control", "campaign", "priority"
ROLES = (CONTROL, CAMPAIGN, PRIORITY)

#: Task name -> role. A send goes to `campaign` or `priority`, as fan-out decides.
TASK_ROLES = {
    "sender.tick": CONTROL,
    "sender.sweep": CONTROL,
    "sender.fanout": CONTROL,
    "sender.enqueue_draft": CONTROL,
    "sender.send": CAMPAIGN,
}


def queues(settings: Settings) -> tuple[Queue, ...]:
    """One queue a role; the default exchange routes by the queue's name."""
    return tuple(Queue(settings.queue(role), routing_key=settings.queue(role)) for role in ROLES)


def routes(settings: Settings) -> dict[str, dict[str, str]]:
    """Celery's `task_routes`."""
    return {name: {"queue": settings.queue(role)} for name, role in TASK_ROLES.items()}
