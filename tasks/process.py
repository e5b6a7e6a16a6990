"""What a worker process keeps between tasks: one `Runtime` for all its threads, started by the first task and stopped
with the worker."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import structlog
from celery import signals
from celery.platforms import EX_FAILURE, EX_OK
from celery.worker import state

from sender.engine.runtime import Runtime
from sender.errors import DatabaseUnavailableError, SchemaVersionError
from sender.settings import load_settings
from sender.store.database import Database

log = structlog.get_logger()

#: Seconds after a second signal in which a process has ended, whatever hangs.
END_WITHIN = 8.0

#: Seconds for which a process that starts waits for the database before it goes on without.
START_PATIENCE = 3.0

_lock = threading.Lock()
_runtime: Runtime | None = None


def runtime() -> Runtime:
    """This process's runtime, started at first use."""
    global _runtime  # noqa: PLW0603 (a process has one)
    with _lock:
        if _runtime is None:
            _runtime = Runtime(load_settings(), role=os.environ.get("SENDER_ROLE") or "worker", outdated=_stop_in_order)
            _runtime.start()
            _runtime.later.start(_publish)
        return _runtime


def _publish(campaign: str, batches: Sequence[int], urgent: bool) -> None:
    from tasks.control import publish  # here: the tasks import this module

    publish(campaign, batches, urgent)


def stopping() -> bool:
    """Whether the worker was asked to stop."""
    return _stopping.is_set()


_stopping = threading.Event()


def _stop_in_order() -> None:
    if not stopping():  # a second signal would mean: at once
        os.kill(os.getpid(), signal.SIGTERM)


@signals.worker_init.connect
@signals.beat_init.connect
def _refuse_another_schema(**_: Any) -> None:
    """No worker or beat starts on a schema that is not its version's. (A database that is away is waited for.)"""
    settings = load_settings()
    database = Database(
        settings.require_database_url(), schema=settings.database_schema, pool_size=1, timeout=START_PATIENCE
    )
    try:
        with database.transaction():
            pass
    except SchemaVersionError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(error.exit_code) from None
    except DatabaseUnavailableError as error:
        log.warning("database_away_at_start", error=str(error))
    finally:
        database.close()


@signals.worker_ready.connect
def _start(**_: Any) -> None:
    runtime()
    # Celery's own answer to this one is a cold shutdown, which the threads pool does not know how to do.
    signal.signal(signal.SIGQUIT, _hurry)


@signals.worker_shutting_down.connect
def _stop_issuing(**_: Any) -> None:
    # Celery's soft shutdown does nothing on the threads pool: tasks must return by themselves. A signal handler calls
    # this, so it must not wait for a lock that the interrupted code may hold.
    _stopping.set()
    for again in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):  # Celery would ignore it, or break
        signal.signal(again, _hurry)
    if _runtime is not None:
        threading.Thread(target=_runtime.stop_issuing, name="stop-issuing", daemon=True).start()


def _hurry(signum: int, frame: FrameType | None) -> None:
    """End at once, after recording: on the second signal, or on a SIGQUIT."""
    _stopping.set()
    state.should_stop = EX_OK
    threading.Thread(target=_end_now, name="end-now", daemon=True).start()


def _end_now() -> None:
    if _runtime is not None:
        _runtime.hurry()
    time.sleep(END_WITHIN)
    os._exit(EX_FAILURE)  # something hangs: what it holds is taken back when its lease ends


@signals.worker_shutdown.connect
def _close(**_: Any) -> None:
    if _runtime is not None:
        _runtime.close()
