"""One kombu message by task name, so that a new campaign need not wait for the next tick. Never an error: the tick
comes anyway. The client needs no Celery for it."""

from __future__ import annotations

import logging
import uuid
from typing import Any

from kombu.connection import Connection
from kombu.entity import Queue
from kombu.messaging import Producer

from sender.settings import Settings

log = logging.getLogger(__name__)  # not structlog, whose default would print into the application

TICK_TASK = "sender.tick"


def nudge(settings: Settings) -> bool:
    """Publish a tick now. Returns whether the broker took it; waits at most a second or so for it."""
    if settings.broker_url is None:
        return False
    options: dict[str, Any] = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0, "retry_on_timeout": False}
    if settings.broker_key_prefix:
        options["global_keyprefix"] = settings.broker_key_prefix
    name = settings.queue("control")
    task_id = str(uuid.uuid4())
    try:
        with Connection(settings.broker_url.get_secret_value(), transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0)
            Producer(connection).publish(
                ([], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}),
                exchange="",
                routing_key=name,
                declare=[Queue(name, routing_key=name)],
                serializer="json",
                headers={
                    "lang": "py",
                    "task": TICK_TASK,
                    "id": task_id,
                    "root_id": task_id,
                    "parent_id": None,
                    "group": None,
                },
                expiration=10,
                retry=False,
            )
    except Exception as error:
        log.info("nudge_failed error=%s", type(error).__name__)
        return False
    return True
