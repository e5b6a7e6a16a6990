"""The sweep: everything that must be mended, gathered or finished, again and again. Each step is safe to repeat and to
run twice at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from uuid import UUID

import structlog

from sender.engine import canary
from sender.engine.fanout import PRIORITY_AUDIENCE, publish_all
from sender.engine.guard import trust_ended
from sender.engine.housekeeping import Housekeeper
from sender.engine.later import Publish
from sender.engine.leases import lease_clock
from sender.engine.poison import part_suspected
from sender.policy.pace import batch_size
from sender.settings import Settings
from sender.store import batches, cut, ledger, lifecycle, publishing, workers
from sender.store.database import Database

log = structlog.get_logger()

#: Retries put into batches at a time.
MOST_RETRIES = 20_000

#: Seconds after which a published batch that nobody took is published again, if no message waits in the queues; and
#: if there are some.
LOST_AFTER, LOST_AFTER_BUSY = 5.0, 300.0

#: Batches of one campaign that may be published or claimed for the sweep to publish more.
MOST_SWEPT = 40


class Sweeper:
    """One process's sweep. What it remembers of heartbeats is its own: it judges by its own clock, and a new process
    starts to watch anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[int, tuple[UUID, int, float]] = {}
        self._last = lease_clock()
        self._housekeeper = Housekeeper()

    def run(self, database: Database, settings: Settings, publish: Publish, waiting: Callable[[], int]) -> None:
        """One sweep. Does nothing when one is under way in this process.

        What needs the broker comes last: with Redis away, claims are still taken back and campaigns still finish.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            try:
                self._reclaim(database, settings.lease)
                part_suspected(database)
                _finish(database)
                canary.advance(database)
                self._housekeeper.run(database, settings)
                _gather(database, settings.rate)
            except Exception:
                self._seen.clear()  # heartbeats may have stood still because the database did
                raise
            _republish(database, publish, waiting)
        finally:
            self._lock.release()

    def _reclaim(self, database: Database, lease: float) -> None:
        """Take back claims whose heartbeat stood still for a whole lease by this process's clock."""
        now = lease_clock()
        if now - self._last > lease / 2:  # we were away ourselves: what we remember proves nothing
            self._seen.clear()
        self._last = now
        with database.transaction() as transaction:
            claimed = batches.claimed(transaction)
        seen = {}
        for batch_id, owner, beats in claimed:
            known = self._seen.get(batch_id)
            since = known[2] if known is not None and known[:2] == (owner, beats) else now
            seen[batch_id] = (owner, beats, since)
        self._seen = seen
        for batch_id, (owner, beats, since) in seen.items():
            if now - since > lease:
                with database.transaction() as transaction:
                    taken = batches.reclaim(transaction, batch_id, owner, beats, lease=lease)
                if taken:
                    log.warning("claim_reclaimed", batch=batch_id)


def _gather(database: Database, installation_rate: float | None) -> None:
    with database.transaction() as transaction:
        cut.gather_retries(transaction, most=MOST_RETRIES, size_at=batch_size, installation_rate=installation_rate)


def _republish(database: Database, publish: Publish, waiting: Callable[[], int]) -> None:
    """Publish open batches that no fan-out publishes: released, reclaimed, retried, or lost with the broker."""
    after = LOST_AFTER if waiting() == 0 else LOST_AFTER_BUSY
    with database.transaction() as transaction:
        cut.forget_published(transaction, seconds=after)
        straggling = cut.straggling(transaction)
    for campaign_id, key, low, audience, published in straggling:
        if published < MOST_SWEPT:
            with database.transaction() as transaction:
                taken = publishing.take(transaction, campaign_id, low, most=MOST_SWEPT - published)
            publish_all(database, publish, key, [batch_id for batch_id, _ in taken], audience <= PRIORITY_AUDIENCE)


def _finish(database: Database) -> None:
    with database.transaction() as transaction:
        ledger.end_open(transaction)
    with database.transaction() as transaction:
        cut.advance_low(transaction)
    trust_ended(database)
    with database.transaction() as transaction:
        settled = lifecycle.settle(transaction)
        workers.pulse(transaction, "sweep")
    for _, key, state in settled:
        log.info("campaign_finished", campaign=key, state=state)
