"""Times in which connecting fails: planned by the scenario, or asked for at the control endpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sender.model import Environment
from sender.simulator.scenario import Outage, OutageKind

if TYPE_CHECKING:
    from sender.simulator.server import Simulator


class Outages:
    """Begins and ends outages on the simulator's event loop."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._timers: list[asyncio.TimerHandle] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._current: list[Outage] = []
        self._left: dict[int, int] = {}  # id of a counted outage → connections that it still takes

    def plan(self, outages: Iterable[Outage]) -> None:
        """Drop what was planned, end what is going on, and plan these."""
        self.cancel()
        self._reopen()
        for outage in outages:
            self.add(outage)

    def add(self, outage: Outage) -> None:
        """Plan one more."""
        loop = asyncio.get_running_loop()
        if outage.after_seconds:
            self._timers.append(loop.call_later(outage.after_seconds, self._begin, outage))
        else:
            self._begin(outage)

    def cancel(self) -> None:
        """Forget everything that is planned or going on; the listeners are left as they are."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._current.clear()
        self._left.clear()

    def next_kind(self) -> OutageKind | None:
        """What to do to somebody who connects now; None: nothing."""
        for outage in list(self._current):
            if outage.connections is not None:
                left = self._left[id(outage)] = self._left[id(outage)] - 1
                if left <= 0:
                    self._current.remove(outage)
            return outage.kind
        return None

    def _begin(self, outage: Outage) -> None:
        self._current.append(outage)
        if outage.connections is not None:
            self._left[id(outage)] = outage.connections
        if outage.kind is OutageKind.REFUSE:
            self._simulator.stop_listening()
        if outage.drop:
            for connection in list(self._simulator.connections):
                connection.abort()
        if outage.for_seconds is not None:
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(outage.for_seconds, self._end, outage))

    def _end(self, outage: Outage) -> None:
        if outage in self._current:
            self._current.remove(outage)
        if outage.kind is OutageKind.REFUSE:
            self._reopen()

    def _reopen(self) -> None:
        """Listen again, unless another outage goes on refusing."""
        loop = asyncio.get_running_loop()
        for environment in Environment:
            task = loop.create_task(self._listen(environment))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _listen(self, environment: Environment) -> None:
        """The outages are asked when the task runs: one may have begun since it was made."""
        if not any(outage.kind is OutageKind.REFUSE for outage in self._current):
            await self._simulator.listen(environment)
