"""Batches whose turn comes in a moment: published when it does, by the process that knows of it.

A convenience, never a promise: what a process that dies has in here is found by the sweep.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence

import structlog

log = structlog.get_logger()

#: Seconds ahead that are kept in here; what is due later is published from the database.
LONGEST = 10.0

#: Publishes that happen within this many seconds of each other are done together.
TOGETHER = 0.005

#: Seconds that the end waits for the last of them.
CLOSING = 3.0

Publish = Callable[[str, Sequence[int], bool], None]  # campaign key, batch ids, urgent


class Later:
    """One thread with a heap of times. Does nothing until it is given something to publish with."""

    def __init__(self) -> None:
        self._publish: Publish | None = None
        self._heap: list[tuple[float, int, str, Sequence[int], bool]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._thread: threading.Thread | None = None

    def start(self, publish: Publish) -> None:
        """Publish with this from now on."""
        self._publish = publish
        self._thread = threading.Thread(target=self._run, name="later", daemon=True)
        self._thread.start()

    def publish(self, key: str, batch_ids: Sequence[int], *, seconds: float, urgent: bool) -> bool:
        """Publish batches of a campaign in `seconds`; False when they are left to the database."""
        if self._publish is None or self._closed or seconds > LONGEST:
            return False
        with self._changed:
            item = (time.monotonic() + seconds, next(self._order), key, batch_ids, urgent)
            heapq.heappush(self._heap, item)
            if self._heap[0] is item:
                self._changed.notify()
        return True

    def close(self) -> None:
        """Publish what is left, since nobody else knows when it is due. Waits a moment for it."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSING)

    def _run(self) -> None:
        while (due := self._wait()) is not None:
            for (key, urgent), ids in due.items():
                try:
                    self._publish(key, ids, urgent)  # type: ignore[misc]
                except Exception as error:  # the broker is away: the sweep publishes them
                    log.warning("publish_later_failed", campaign=key, batches=len(ids), error=type(error).__name__)

    def _wait(self) -> dict[tuple[str, bool], list[int]] | None:
        """What is due, when something is; None at the end."""
        with self._changed:
            while not self._closed:
                left = self._heap[0][0] - time.monotonic() if self._heap else None
                if left is not None and left <= 0:
                    return self._pop(time.monotonic() + TOGETHER)
                self._changed.wait(left)
            return self._pop(math.inf) or None

    def _pop(self, until: float) -> dict[tuple[str, bool], list[int]]:
        due: dict[tuple[str, bool], list[int]] = {}
        while self._heap and self._heap[0][0] <= until:
            _, _, key, ids, urgent = heapq.heappop(self._heap)
            due.setdefault((key, urgent), []).extend(ids)
        return due
