"""The Celery application: JSON only, no results, acknowledged late, limits and waits kept out of the broker.

Why each trap is designed around is written down in docs/decisions/.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, signals

from config.failures import RedactingTask
from config.logs import configure_logging
from config.queues import CONTROL, queues, routes
from config.schedule import SCHEDULER, schedule
from config.transport import use_this_transport
from sender.settings import Settings, load_settings
from sender.stack.commands import SENDING


def make_app(settings: Settings, *, role: str = "") -> Celery:
    """A configured application for these settings and a process of a role. Raises `ConfigurationError` when the
    broker's URL is missing."""
    use_this_transport()
    app = Celery("sender", broker=settings.require_broker_url(), set_as_current=False, task_cls=RedactingTask)
    app.conf.update(celery_settings(settings, role=role))
    return app


def celery_settings(settings: Settings, *, role: str = "") -> dict[str, Any]:
    """Everything that is set, in one place."""
    default_queue = settings.queue(CONTROL)
    return {
        # Messages: ids and keys as JSON; nothing executable is ever accepted.
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_backend": None,
        "task_ignore_result": True,
        # Queues: ours alone.
        "task_queues": queues(settings),
        "task_routes": routes(settings),
        "task_default_queue": default_queue,
        "task_default_exchange": default_queue,
        "task_default_routing_key": default_queue,
        "task_create_missing_queues": False,
        # A message is acknowledged when its work is recorded; the claim in the database makes a second copy harmless.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "threads",
        "worker_consumer": "config.consumer:GuardedConsumer",
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_send_task_events": True,
        "worker_enable_remote_control": True,
        # The broker: found again by itself, never waited for without a limit.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": transport_options(settings, role=role),
        "broker_pool_limit": 20,
        "task_publish_retry": True,
        "task_publish_retry_policy": {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.3, "interval_max": 1},
        # Beat
        "beat_schedule": schedule(),
        "beat_scheduler": SCHEDULER,
        "beat_max_loop_interval": 1,
        "timezone": "UTC",
        "enable_utc": True,
    }


def transport_options(settings: Settings, *, role: str = "") -> dict[str, Any]:
    """Options of kombu's Redis transport."""
    options: dict[str, Any] = {
        "visibility_timeout": 3600,
        "socket_timeout": 15.0,
        "socket_connect_timeout": 5.0,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "queue_order_strategy": "priority",
        "ack_emulation": role not in SENDING,
    }
    if settings.broker_key_prefix:
        options["global_keyprefix"] = settings.broker_key_prefix
    return options


@signals.setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    configure_logging(load_settings())
