"""What need not run every second: partitions ahead of time, processes and imports that are gone, retention.

A round takes a bounded time, so that the sweep which calls it is never held up; what is left over is taken up again
soon. Nothing here may keep the sweep from its work: what fails is logged, and tried again in the next round.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from sender.engine.mishaps import apart, survived
from sender.engine.retention import retain
from sender.settings import Settings
from sender.store import imports, partitions, workers
from sender.store.database import Database
from sender.store.outages import BUSY

log = structlog.get_logger()

#: Seconds between two rounds; and when the last one left something over.
EVERY = 60.0
AGAIN = 2.0

#: Seconds that one round spends on retention: it ends after the step in which they are over.
BUDGET = 0.5

#: Seconds after which a process that was not heard of is taken off the list.
DEAD_AFTER = 86_400.0


class Housekeeper:
    """One process's housekeeping. Two at once do no harm."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = clock()

    def run(self, database: Database, settings: Settings) -> None:
        """One round, if it is time for one."""
        if self._clock() < self._due:
            return
        self._due = self._clock() + EVERY
        _prepare(database)
        finished = True
        with apart("retention_failed"):
            finished = self._retain(database, settings)
        if not finished:
            self._due = self._clock() + AGAIN

    def _retain(self, database: Database, settings: Settings) -> bool:
        """Retain until nothing is left to do or the budget is used up; whether nothing is left."""
        end = self._clock() + BUDGET
        return all(self._clock() <= end for _ in retain(database, settings))


def _prepare(database: Database) -> None:
    try:
        with database.transaction() as transaction:
            partitions.ensure_ahead(transaction)
    except BUSY as error:  # somebody reads the changelog for long: there are months of time left
        log.info("partitions_deferred", error=type(error).__name__)
    with database.transaction() as transaction:
        workers.forget_dead(transaction, seconds=DEAD_AFTER)
    with survived("leftovers_of_imports"), database.transaction() as transaction:
        transaction.wait_for_locks("500ms")
        imports.drop_leftovers(transaction)
