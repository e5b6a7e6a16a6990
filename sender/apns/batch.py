"""The pushes of one `send` call, the places of their answers, and their common deadline."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Collection, Sequence
from typing import TypeAlias

from sender.model import Answer, Push

#: Where an answer belongs: a batch and the place of the push in it.
Slot: TypeAlias = "tuple[Batch, int]"


class Batch:
    """Collects exactly one answer a push, and calls `done` when it has them all."""

    __slots__ = ("answers", "deadline", "done", "pushes", "remaining")

    def __init__(self, pushes: Sequence[Push], deadline: float, done: Callable[[Batch], None]) -> None:
        self.pushes = pushes
        self.answers: list[Answer | None] = [None] * len(pushes)
        self.remaining = len(pushes)
        self.deadline = deadline
        self.done = done

    def settle(self, place: int, answer: Answer) -> None:
        """Record the answer of one push, unless it has one already."""
        if self.answers[place] is None:
            self.answers[place] = answer
            self.remaining -= 1
            if not self.remaining:
                self.done(self)

    def settle_rest(self, answer: Answer) -> None:
        """Give every push that has no answer yet this one."""
        for place, found in enumerate(self.answers):
            if found is None:
                self.settle(place, answer)


class Deadlines:
    """One timer for the deadlines of all batches.

    Batches wait in buckets of 50 ms, so that adding and removing one costs the same whatever its timeout; what stays
    behind of a finished batch is its bucket, until the bucket's time has come.

    A timer that is late says that this process stood still (it was stopped, or the machine slept): the answers have
    come, and nobody has read them yet. Such batches get `GRACE` seconds more, in which nothing of them is written.
    """

    GRAIN = 0.05
    LOOK = 0.25  # seconds between two calls of the timer, which is late whenever the process stood still
    LATE = 0.1  # seconds by which a timer may be late on a busy machine
    GRACE = 0.5

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        expire: Callable[[Batch], None],
        withdraw: Callable[[Collection[Batch]], object],
    ) -> None:
        """`expire` ends a batch; `withdraw` takes back what of some batches was never written."""
        self._loop = loop
        self._expire = expire
        self._withdraw = withdraw
        self._buckets: dict[int, dict[Batch, None]] = {}
        self._order: list[int] = []
        self._timer: asyncio.TimerHandle | None = None
        self._at = 0.0  # when it should be called

    def add(self, batch: Batch) -> None:
        """Have `expire` called with the batch at its deadline, or up to 50 ms after it."""
        number = int(batch.deadline / self.GRAIN) + 1
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = {}
            heapq.heappush(self._order, number)
            if self._order[0] == number:
                self._schedule()
        bucket[batch] = None

    def remove(self, batch: Batch) -> None:
        """Forget the batch: it has all its answers."""
        bucket = self._buckets.get(int(batch.deadline / self.GRAIN) + 1)
        if bucket is not None:
            bucket.pop(batch, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _schedule(self) -> None:
        self.close()
        if self._order:
            self._at = min(self._order[0] * self.GRAIN, self._loop.time() + self.LOOK)
            self._timer = self._loop.call_at(self._at, self._fire)

    def _fire(self) -> None:
        now = self._loop.time()
        late = now - self._at > self.LATE
        due: list[Batch] = []
        while self._order and self._order[0] * self.GRAIN <= now + 1e-3:
            due += self._buckets.pop(heapq.heappop(self._order))
        if late and due:
            self._withdraw(due)
            self._loop.call_later(self.GRACE, self._expire_all, due)
        else:
            self._expire_all(due)
        self._schedule()

    def _expire_all(self, due: Sequence[Batch]) -> None:
        for batch in due:
            if batch.remaining:
                self._expire(batch)
