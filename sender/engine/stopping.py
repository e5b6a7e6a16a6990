"""How a process stops: the first signal has it issue nothing more and wait a bounded time, the second has it end as
soon as things are written down."""

from __future__ import annotations

import threading

from sender.engine.leases import lease_clock

#: Seconds for writing things down, once the answers are in or not waited for any longer.
RECORDING_TIME = 5.0


class Stopping:
    """Whether a process stops, and how long what is under way may still wait. Thread-safe; `timeout` in seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._end: float | None = None
        self._hurried = threading.Event()

    @property
    def begun(self) -> bool:
        """Whether the process was told to stop."""
        return self._end is not None

    @property
    def hurried(self) -> bool:
        """Whether it was told so again: nothing is waited for any longer."""
        return self._hurried.is_set()

    def begin(self) -> None:
        """Have everything end in a bounded time."""
        if self._end is None:
            self._end = lease_clock() + self._timeout + RECORDING_TIME

    def hurry(self) -> None:
        """Have everything end now."""
        self.begin()
        self._hurried.set()

    def may_wait(self) -> bool:
        """Whether what could not be written yet may be tried again later."""
        return not self.hurried and (self._end is None or lease_clock() < self._end)

    def pause(self, seconds: float) -> None:
        """Sleep, or until it is told to hurry."""
        self._hurried.wait(seconds)
