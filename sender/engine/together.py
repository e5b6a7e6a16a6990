"""What several threads of a process ask the database for at the same moment, asked for in one transaction.

Nobody waits for company: whoever finds nobody at it goes at once, with those who came meanwhile, and then leaves to the
first of those who came since. So a batch by itself is as quick as it ever was, and under load the groups form by
themselves, the larger the slower the database is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import structlog

from sender.store.outages import is_outage

log = structlog.get_logger()

#: Items of one group at the most.
MOST = 64

Item = TypeVar("Item")
Result = TypeVar("Result")
Other = TypeVar("Other")


class Together(Generic[Item, Result]):
    """One kind of step that can be taken for several items at once. Thread-safe."""

    def __init__(self, step: str) -> None:
        self._step = step
        self._lock = threading.Lock()
        self._busy = False  # somebody leads
        self._waiting: list[_Asked[Item, Result]] = []

    def do(
        self,
        item: Item,
        *,
        together: Callable[[Sequence[Item]], Sequence[Result | None]],
        alone: Callable[[Item], Other],
    ) -> Result | Other:
        """Take the step for an item, and return what it comes to.

        `together` takes it for several (or one), and must wait for nobody; it gives None for an item for which it did
        nothing. That, and every item of a group that broke, is left to `alone`: what is wrong with one costs the others
        nothing.
        """
        mine = _Asked[Item, Result](item)
        if self._comes_first(mine) or mine.leads_when_called():
            self._lead(together)
        return alone(item) if mine.result is None else mine.result

    def _comes_first(self, mine: _Asked[Item, Result]) -> bool:
        with self._lock:
            self._waiting.append(mine)
            first, self._busy = not self._busy, True
            return first

    def _lead(self, together: Callable[[Sequence[Item]], Sequence[Result | None]]) -> None:
        """Take the step for all who wait by now, of whom the leader is the first, and have the next one lead."""
        with self._lock:
            group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        rest: list[_Asked[Item, Result]] = []
        try:
            for asked, result in zip(group, together([asked.item for asked in group]), strict=True):
                asked.result = result
        except Exception as error:
            if not is_outage(error):
                log.warning("group_broke", step=self._step, size=len(group), error=type(error).__name__)
            with self._lock:  # those who came meanwhile should not wait for the same trouble one after the other
                rest, self._waiting = self._waiting, []
        finally:
            with self._lock:
                following = self._waiting[0] if self._waiting else None
                self._busy = following is not None
            for asked in (*group, *rest):
                asked.call(leads=False)
            if following is not None:
                following.call(leads=True)


class _Asked(Generic[Item, Result]):
    """An item, and the thread that waits for what it comes to."""

    __slots__ = ("_called", "_leads", "item", "result")

    def __init__(self, item: Item) -> None:
        self.item = item
        self.result: Result | None = None
        self._leads = False
        self._called = threading.Event()

    def leads_when_called(self) -> bool:
        """Wait until it is done, or its turn to lead; whether it is that."""
        self._called.wait()
        return self._leads

    def call(self, *, leads: bool) -> None:
        """End its wait."""
        self._leads = leads
        self._called.set()
