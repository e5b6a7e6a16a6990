"""Logs of a `sender up` that runs for months: each is put aside and begun anew when it is long.

Servers and processes write to a descriptor that was opened for appending before they started, so that the file stays
and only its contents are moved: what is appended next begins it anew.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from sender.stack.datadir import LOG_LIMIT, DataDirectory

#: Seconds between two looks.
EVERY = 30.0


class Logs:
    """The logs of one data directory: at most twice LOG_LIMIT for each, and what was written between two looks."""

    def __init__(self, data: DataDirectory, clock: Callable[[], float] = time.monotonic) -> None:
        self._data = data
        self._clock = clock
        self._looked = clock()

    def tend(self) -> None:
        """Put aside what is too long, now and then."""
        if self._clock() - self._looked < EVERY:
            return
        self._looked = self._clock()
        for log in self._data.logs.glob("*.log"):
            with contextlib.suppress(OSError):  # the disk is full, or somebody removed it: logs are not worth an end
                if log.stat().st_size > LOG_LIMIT:
                    _put_aside(log)


def _put_aside(log: Path) -> None:
    """Copy the log to LOG.1 (mode 0600) and empty it. A line that is written meanwhile is lost."""
    descriptor = os.open(f"{log}.1", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with log.open("rb") as source, os.fdopen(descriptor, "wb") as aside:
        shutil.copyfileobj(source, aside)
    os.truncate(log, 0)
