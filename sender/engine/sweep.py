"""The sweep: everything that must be mended, gathered or finished, again and again. Each step is safe to repeat and to
run twice at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from sender.engine.fanout import publish_all
from sender.engine.housekeeping import Housekeeper
from sender.engine.later import Publish
from sender.engine.mishaps import apart
from sender.engine.poison import part_suspected
from sender.engine.protection import canary
from sender.engine.protection.trusting import trust_ended
from sender.engine.reclaiming import HeartbeatWatch
from sender.policy.pace import PRIORITY_AUDIENCE, batch_size
from sender.settings import Settings
from sender.store import cut, intents, ledger, lifecycle, lost, publishing, workers
from sender.store.database import Database
from sender.store.outages import BUSY

log = structlog.get_logger()

#: Retries put into batches at a time.
MOST_RETRIES = 20_000

#: Seconds after which a published batch that nobody took is published again, if no message waits in the queues; and
#: if there are some.
LOST_AFTER, LOST_AFTER_BUSY = 5.0, 300.0

#: Seconds by which a message must be younger for its being taken to prove that an older one is lost; and those that no
#: message is published ahead of its time.
OVERTAKEN_BY, AHEAD = 10.0, 60.0

#: How long the end of a campaign waits for what somebody records of it.
LOCKED_FOR = "500ms"

#: Batches of one campaign that may be published or claimed for the sweep to publish more.
MOST_SWEPT = 40


class Sweeper:
    """One process's sweep."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._heartbeats = HeartbeatWatch()
        self._housekeeper = Housekeeper()

    def run(self, database: Database, settings: Settings, publish: Publish, waiting: Callable[[], int]) -> None:
        """One sweep. Does nothing when one is under way in this process.

        What needs the broker comes last: with Redis away, claims are still taken back and campaigns still finish.
        """
        steps: tuple[Callable[[], None], ...] = (
            lambda: self._heartbeats.reclaim(database, settings.lease),
            lambda: part_suspected(database),
            lambda: end_open(database),
            lambda: _finish(database),
            lambda: canary.advance(database),
            lambda: self._housekeeper.run(database, settings),
            lambda: _gather(database, settings.rate),
        )
        if not self._lock.acquire(blocking=False):
            return
        try:
            for step in steps:
                with apart("sweep_step_broke"):
                    step()
        except Exception:  # the database is away, and was when heartbeats stood still
            self._heartbeats.forget()
            raise
        else:
            _republish(database, publish, waiting)
        finally:
            self._lock.release()


def _gather(database: Database, installation_rate: float | None) -> None:
    with database.transaction() as transaction:
        cut.gather_retries(transaction, most=MOST_RETRIES, size_at=batch_size, installation_rate=installation_rate)


def _republish(database: Database, publish: Publish, waiting: Callable[[], int]) -> None:
    """Publish open batches that no fan-out publishes: released, reclaimed, retried, or lost with the broker."""
    longest = LOST_AFTER if waiting() == 0 else LOST_AFTER_BUSY
    with database.transaction() as transaction:
        forgotten = lost.forget(
            transaction, longest=longest, overtaken=OVERTAKEN_BY, ahead=AHEAD, urgent=PRIORITY_AUDIENCE
        )
        straggling = cut.straggling(transaction)
    if forgotten:
        log.warning("messages_lost", batches=len(forgotten))
    for campaign_id, key, low, audience, published in straggling:
        if published < MOST_SWEPT:
            with database.transaction() as transaction:
                taken = publishing.take(transaction, campaign_id, low, most=MOST_SWEPT - published)
            publish_all(database, publish, key, [batch_id for batch_id, _ in taken], audience <= PRIORITY_AUDIENCE)


def end_open(database: Database) -> None:
    """Record what cancelled and failed campaigns will not send any more."""
    with database.transaction() as transaction:
        found = ledger.ending(transaction)
    for ending in found:
        with apart("ending_broke", campaign=ending.key):
            try:
                with database.transaction() as transaction:
                    transaction.wait_for_locks(LOCKED_FOR)
                    ledger.end_open(transaction, ending)
            except BUSY as error:  # a late answer is being recorded: the next sweep takes it up
                log.info("ending_deferred", campaign=ending.key, error=type(error).__name__)


def _finish(database: Database) -> None:
    with database.transaction() as transaction:
        cut.advance_low(transaction)
    trust_ended(database)
    with database.transaction() as transaction:
        settled = lifecycle.settle(transaction)
        if settled:
            intents.forget_finished(transaction)
        workers.pulse(transaction, "sweep")
    for _, key, state in settled:
        log.info("campaign_finished", campaign=key, state=state)
