"""What is told of a task that failed: Celery logs the exception, and publishes it as an event that Flower shows.

The words of an exception may be anybody's (PostgreSQL's hold values of rows), and events pass the log's redaction by.
"""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.exceptions import TaskPredicate

from sender.redaction import redact


class TaskFailedError(Exception):
    """Raised in the place of what a task raised, with its type, its redacted words, and its traceback."""


class RedactingTask(Task):  # type: ignore[misc]  # celery has no types
    """The base of every task. The worker needs no other: it does nothing with the type of what a task raises."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the body; as Celery's own, which this stands in for when a worker runs the task."""
        try:
            return self.run(*args, **kwargs)
        except TaskPredicate:  # Retry, Ignore, Reject: not a failure
            raise
        except Exception as error:
            words = redact(f"{type(error).__name__}: {error}")
            raise TaskFailedError(words).with_traceback(error.__traceback__) from None
