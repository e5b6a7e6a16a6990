"""What a worker process keeps between tasks: one `Runtime` for all its threads, started by the first task and stopped
with the worker."""

from __future__ import annotations

import os
import threading
from typing import Any

from celery import signals

from sender.engine.runtime import Runtime
from sender.settings import load_settings

_lock = threading.Lock()
_runtime: Runtime | None = None


def runtime() -> Runtime:
    """This process's runtime, started at first use."""
    global _runtime  # noqa: PLW0603 (a process has one)
    with _lock:
        if _runtime is None:
            _runtime = Runtime(load_settings(), role=os.environ.get("SENDER_ROLE", "worker"))
            _runtime.start()
        return _runtime


def stopping() -> bool:
    """Whether the worker was asked to stop."""
    return _stopping.is_set()


_stopping = threading.Event()


@signals.worker_ready.connect
def _start(**_: Any) -> None:
    runtime()


@signals.worker_shutting_down.connect
def _stop_issuing(**_: Any) -> None:
    # Celery's soft shutdown does nothing on the threads pool: tasks must return by themselves. A signal handler calls
    # this, so it must not wait for a lock that the interrupted code may hold.
    _stopping.set()
    if _runtime is not None:
        threading.Thread(target=_runtime.stop_issuing, name="stop-issuing", daemon=True).start()


@signals.worker_shutdown.connect
def _close(**_: Any) -> None:
    if _runtime is not None:
        _runtime.close()
