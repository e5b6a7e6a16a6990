"""The claims that this process holds: each knows until when it may issue, whether it must stop, and at what rate.

A lease is renewed by heartbeats and counted on a clock that goes on while the machine sleeps; a claim stops issuing
before its lease can end for anybody else.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from sender.engine.mishaps import survived
from sender.engine.pacing import limits_of
from sender.store import halts, sending, workers
from sender.store.batches import Claim
from sender.store.database import Database
from sender.store.limits import Limit
from sender.store.sending import Standing

log = structlog.get_logger()

#: Seconds between two looks at whether the held campaigns still send, and how fast.
WATCH_INTERVAL = 0.2

#: The share of a lease after which its holder stops issuing, if no heartbeat renewed it.
SAFE_SHARE = 0.7


def lease_clock() -> float:
    """Seconds on a clock that never steps and that counts suspension."""
    boottime = getattr(time, "CLOCK_BOOTTIME", None)  # Linux
    if boottime is not None:
        return time.clock_gettime(boottime)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)  # counts sleep there; time.monotonic() does not
    return time.monotonic()


class Lease:
    """One held claim."""

    def __init__(self, claim: Claim, *, taken: float, length: float, installation_rate: float | None) -> None:
        self.claim = claim
        self.stopped = threading.Event()  # nothing more may be issued
        self.told = False  # the database knows that it has stopped
        self._length = length
        self._taken = taken
        self._safe_until = self._taken + length * SAFE_SHARE
        self._installation_rate = installation_rate
        self._limits: Sequence[Limit] = self._limits_at(claim.campaign.rate, claim.campaign.app_rate)

    def now(self) -> datetime:
        """The time by the database's clock, counted on from the claim: a wrong clock here does no harm."""
        return self.claim.loaded_at + timedelta(seconds=lease_clock() - self._taken)

    @property
    def age(self) -> float:
        """Seconds since it was claimed."""
        return lease_clock() - self._taken

    def may_issue(self) -> bool:
        """Whether a slice may go out now."""
        if lease_clock() >= self._safe_until:
            self.stopped.set()
        return not self.stopped.is_set()

    def limits(self) -> Sequence[Limit]:
        """The limits in force now."""
        self.may_issue()
        return self._limits

    def renew(self, started: float) -> None:
        """A heartbeat that began at `started` (lease clock) found the claim still ours."""
        self._safe_until = started + self._length * SAFE_SHARE

    def heed(self, standing: Standing | None) -> None:
        """Follow what the campaign and its app say now."""
        if standing is None or not standing.sends:
            self.stopped.set()
        else:
            self._limits = self._limits_at(standing.rate, standing.app_rate)

    def _limits_at(self, rate: float | None, app_rate: float | None) -> Sequence[Limit]:
        campaign = self.claim.campaign
        return limits_of(
            installation=self._installation_rate,
            app_id=campaign.app_id,
            app=app_rate,
            campaign_id=campaign.id,
            campaign=rate,
        )


class Leases:
    """All held claims, with the threads that renew them and watch their campaigns."""

    def __init__(self, database: Database, *, length: float, installation_rate: float | None) -> None:
        self._database = database
        self._length = length
        self._installation_rate = installation_rate
        self._held: dict[UUID, Lease] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._stopping = False

    @contextmanager
    def hold(self, claim: Claim, *, taken: float | None = None) -> Iterator[Lease]:
        """Hold a claim that was asked for at `taken` (lease clock; None: now): renewed until the block ends."""
        since = lease_clock() if taken is None else taken
        lease = Lease(claim, taken=since, length=self._length, installation_rate=self._installation_rate)
        with self._lock:
            self._held[claim.owner] = lease
            if self._stopping:
                lease.stopped.set()
        try:
            yield lease
        finally:
            with self._lock:
                self._held.pop(claim.owner, None)

    def start(self) -> None:
        """Start renewing and watching."""
        self._repeat("lease-heartbeat", self._length / 6, self._beat)
        self._repeat("lease-watch", WATCH_INTERVAL, self._watch)

    def stop_issuing(self) -> None:
        """Have every claim, held now or later, issue nothing more. Does not wait."""
        self._stopping = True
        for lease in self._snapshot():
            lease.stopped.set()

    def stop_campaign(self, campaign_id: int) -> None:
        """Have the claims of a campaign that are held now issue nothing more. Does not wait."""
        for lease in self._snapshot():
            if lease.claim.campaign.id == campaign_id:
                lease.stopped.set()

    def close(self) -> None:
        """End the threads."""
        self._closing.set()

    @property
    def held(self) -> int:
        """How many claims are held."""
        return len(self._held)

    def _snapshot(self) -> list[Lease]:
        with self._lock:
            return list(self._held.values())

    def _beat(self) -> None:
        held = self._snapshot()
        if not held:
            return
        started = lease_clock()
        with self._database.transaction() as transaction:
            alive = workers.beat_claims(
                transaction, [lease.claim.batch_id for lease in held], [lease.claim.owner for lease in held]
            )
        for lease in held:
            if lease.claim.owner in alive:
                lease.renew(started)
            else:
                self._lost(lease)

    def _lost(self, lease: Lease) -> None:
        with self._lock:
            still = lease.claim.owner in self._held
        if still and not lease.stopped.is_set():
            lease.stopped.set()
            log.warning("claim_lost", batch=lease.claim.batch_id, campaign=lease.claim.campaign.key)

    def _watch(self) -> None:
        held = self._snapshot()
        if not held:
            return
        with self._database.transaction() as transaction:
            standings = sending.standings(transaction, {lease.claim.campaign.id for lease in held})
        for lease in held:
            lease.heed(standings.get(lease.claim.campaign.id))
        self._tell([lease for lease in held if lease.stopped.is_set() and not lease.told])

    def _tell(self, stopped: Sequence[Lease]) -> None:
        """Let whoever ordered a stop know that these claims heed it."""
        if not stopped:
            return
        with self._database.transaction() as transaction:
            told = halts.halt(
                transaction, [lease.claim.batch_id for lease in stopped], [lease.claim.owner for lease in stopped]
            )
        for lease in stopped:
            lease.told = lease.claim.batch_id in told

    def _repeat(self, name: str, interval: float, step: Callable[[], None]) -> None:
        def run() -> None:
            while not self._closing.wait(interval):
                with survived(name):
                    step()

        threading.Thread(target=run, name=name, daemon=True).start()
