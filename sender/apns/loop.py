"""One asyncio event loop in a daemon thread per process, on which everything that talks to APNs runs.

Built lazily, because Celery's `worker_process_init` never fires on a threads pool, and anew after a fork, because a
thread does not survive one.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class EventLoopThread:
    """A daemon thread that runs one event loop. `run` is for worker threads, never for the loop itself."""

    def __init__(self, name: str = "sender-apns") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        forget = weakref.WeakMethod(self._forget)
        os.register_at_fork(after_in_child=lambda: (method := forget()) and method())

    @property
    def running(self) -> bool:
        """Whether the loop runs in this process."""
        return self._thread is not None and self._pid == os.getpid() and self._thread.is_alive()

    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop, started when it does not run yet in this process."""
        with self._lock:
            if self._loop is None or not self.running:
                self._loop = self._start()
            return self._loop

    def submit(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Start the coroutine on the loop and return at once."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop())

    def run(self, coroutine: Coroutine[Any, Any, Result], *, timeout: float | None = None) -> Result:
        """Run the coroutine on the loop and wait for its result.

        Raises `TimeoutError` after `timeout` seconds; the coroutine goes on, since cancelling a send would lose
        answers. Raises `RuntimeError` when called on the loop's own thread, which would wait for itself.
        """
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("run() was called on the event loop itself: await instead")
        return self.submit(coroutine).result(timeout)

    def stop(self, *, timeout: float = 5.0) -> None:
        """Cancel what still runs, stop the loop and wait for its thread; a later `run` starts a new one."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is None or thread is None or self._pid != os.getpid():
                return
        if thread.is_alive():
            loop.call_soon_threadsafe(loop.stop)
            thread.join(timeout)

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        started = threading.Event()
        thread = threading.Thread(target=_serve, args=(loop, started), name=self._name, daemon=True)
        thread.start()
        started.wait()
        self._thread, self._pid = thread, os.getpid()
        return loop

    def _forget(self) -> None:
        """After a fork, in the child: the parent's thread is not here, and its lock may be held for ever."""
        self._lock = threading.Lock()
        self._loop = self._thread = None


def _serve(loop: asyncio.AbstractEventLoop, started: threading.Event) -> None:
    asyncio.set_event_loop(loop)
    loop.call_soon(started.set)
    try:
        loop.run_forever()
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


_shared = EventLoopThread()


def run(coroutine: Coroutine[Any, Any, Result], *, timeout: float | None = None) -> Result:
    """Run the coroutine on this process's loop, from any other thread, and wait for its result."""
    return _shared.run(coroutine, timeout=timeout)


def submit(coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
    """Start the coroutine on this process's loop and return at once."""
    return _shared.submit(coroutine)


def stop(*, timeout: float = 5.0) -> None:
    """Stop this process's loop; a later `run` starts a new one."""
    _shared.stop(timeout=timeout)
