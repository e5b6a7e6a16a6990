"""A worker's consumer that outlives whatever stands in its queue.

Celery refuses unknown tasks, wrong content types and most malformed messages by itself. What its own reading trips over
(a body of `null`, a task's name that is an object) would end the worker, and the message, put back, the next one too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog
from celery.worker.consumer import Consumer

log = structlog.get_logger()
_plain_log = logging.getLogger(__name__)  # for kombu


#: Seconds for which events of tasks are gathered before they are published together, for Flower to show.
EVENTS_EVERY = 0.25


class GuardedConsumer(Consumer):  # type: ignore[misc]  # celery has no types
    """Celery's, but rejects for good a message that its reading trips over, and publishes events of tasks together:
    each by itself, as soon as the loop is free, they cost as much as all the rest of a message."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Called with every new connection; Celery takes the timer away with it."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_EVERY, self._flush_events)

    def on_send_event_buffered(self) -> None:
        """The timer is enough."""

    def stop(self) -> None:
        """Stop, with the last events published."""
        with suppress(*self.connection_errors, *self.channel_errors):
            self._flush_events()
        super().stop()

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
        """What is called with each message."""
        handle = super().create_task_handler(*args, **options)
        passed = (*self.connection_errors, *self.channel_errors)

        def guarded(message: Any) -> Any:
            try:
                return handle(message)
            except passed:
                raise
            except Exception as error:
                log.error("message_refused", error=type(error).__name__)  # noqa: TRY400 - its traceback is Celery's
                if not message.acknowledged:
                    message.reject_log_error(_plain_log, passed)
                return None

        return guarded
