"""When a pool may try to connect again: a pause that doubles with each failure in a row, half of it random, so that
many processes which lose their connections together make few attempts a second."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

#: Seconds between two attempts to connect, whatever happens: a server that refuses sees at most five a second.
SHORTEST_PAUSE = 0.2
#: Seconds after the first failure in a row.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
#: Failures in a row after which pushes are no longer kept waiting for the next attempt.
PATIENCE = 2


class Attempts:
    """Failures in a row, and the time of the next attempt."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.failures = 0
        self._loop = loop
        self._made = self._next = 0.0
        self._revived = asyncio.Event()

    @property
    def hopeless(self) -> bool:
        """It failed several times in a row."""
        return self.failures >= PATIENCE

    @property
    def due(self) -> bool:
        """Whether the next one may be made now."""
        return self._loop.time() >= self._next

    async def begin(self) -> None:
        """Wait until the next one may be made, which `revive` brings forward, and make it."""
        while (left := self._next - self._loop.time()) > 0:
            self._revived.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._revived.wait()
        self._made = self._loop.time()
        self._next = self._made + SHORTEST_PAUSE

    def fail(self, failures: int = 1) -> None:
        """One failed: the next one waits; several at once for a cause that lasts."""
        self.failures += failures
        pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self.failures - 1, 20))
        self._next = self._loop.time() + max(SHORTEST_PAUSE, pause * (0.5 + 0.5 * random.random()))  # noqa: S311

    def revive(self) -> None:
        """Let the next one be made soon, however often they failed."""
        self._next = min(self._next, self._made + SHORTEST_PAUSE)
        self._revived.set()
