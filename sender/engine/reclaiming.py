"""Taking claims back from the dead: those whose heartbeat stood still for a whole lease, watched by this process."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

import structlog

from sender.engine.leases import lease_clock
from sender.store import batches
from sender.store.database import Database

log = structlog.get_logger()

#: The most that one look counts of the time since the look before, as a share of the lease. What happened in between
#: nobody saw: while this machine slept, the workers may have slept as well, and must have time to beat.
LOOK_SHARE = 0.4


@dataclass(slots=True, kw_only=True)
class _Seen:
    owner: UUID
    beats: int
    still: float  # seconds that were watched without a heartbeat


class HeartbeatWatch:
    """What one process has seen of the claims. It judges by its own clock, and a new process starts to watch anew.

    However far apart its looks are: what is dead is taken back after three of them, and a lease.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._last = lease_clock()

    def forget(self) -> None:
        """Start anew: heartbeats may have stood still because the database did."""
        self._seen.clear()

    def reclaim(self, database: Database, lease: float) -> None:
        """Look at every claim, and take back those that stood still for `lease` seconds."""
        for batch_id, seen in self._look(database, lease).items():
            with database.transaction() as transaction:
                taken = batches.reclaim(transaction, batch_id, seen.owner, seen.beats, lease=lease)
            if taken:
                log.warning("claim_reclaimed", batch=batch_id)

    def _look(self, database: Database, lease: float) -> dict[int, _Seen]:
        with database.transaction() as transaction:
            claimed = batches.claimed(transaction)
        now = lease_clock()
        passed, self._last = max(0.0, min(now - self._last, lease * LOOK_SHARE)), now
        before, self._seen = self._seen, {}
        for batch_id, owner, beats in claimed:
            known = before.get(batch_id)
            same = known is not None and (known.owner, known.beats) == (owner, beats)
            still = known.still + passed if known is not None and same else 0.0
            self._seen[batch_id] = _Seen(owner=owner, beats=beats, still=still)
        return {batch_id: seen for batch_id, seen in self._seen.items() if seen.still > lease}
