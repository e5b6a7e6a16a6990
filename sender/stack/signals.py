"""Being told to stop: the first signal asks to drain, the second to end at once."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """Raised by `pause` when a signal came while starting."""


class StopSignals:
    """Counts stop signals while it is entered, and sleeps so that a signal ends the sleep. Main thread only."""

    def __init__(self) -> None:
        self.count = 0
        self._before: dict[int, Any] = {}
        self._reader, self._writer = -1, -1

    def pause(self, seconds: float) -> None:
        """Sleep while something starts. Raises `Stopped` when a stop signal came."""
        if not self.count:
            self.sleep(seconds)
        if self.count:
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Sleep, or until the next signal."""
        deadline = time.monotonic() + seconds
        before = self.count
        while self.count == before and (left := deadline - time.monotonic()) > 0:
            if select.select([self._reader], [], [], left)[0]:
                os.read(self._reader, 512)

    def __enter__(self) -> Self:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) if hasattr(os, "pipe2") else _pipe()
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        # What is ignored stays ignored: nohup, and Ctrl-C for what a shell runs in the background.
        heard = [signum for signum in STOPPING if signal.getsignal(signum) is not signal.SIG_IGN]
        self._before = {signum: signal.signal(signum, self._count) for signum in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        signal.set_wakeup_fd(-1)
        os.close(self._reader)
        os.close(self._writer)

    def _count(self, signum: int, frame: FrameType | None) -> None:
        self.count += 1


@contextmanager
def ended_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end what is done meanwhile as Ctrl-C does, by an exception, so that it is cleaned up.
    Main thread only."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    heard = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, end) for each in heard}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def stop_with_starter() -> None:
    """Be told to stop (SIGTERM) when standard input ends: a pipe from whoever started this process, which ends when
    that one does, in whatever way."""

    def wait() -> None:
        descriptor = sys.stdin.fileno()
        while os.read(descriptor, 512):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="starter", daemon=True).start()


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    return reader, writer
