"""Whether the workers have noticed that a campaign must not send: each says so of the claims that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sender.store.database import Transaction

_HALT = """
UPDATE {s}.batches b SET halted = true
FROM (
    SELECT b.id FROM {s}.batches b JOIN unnest(%(ids)s::bigint[], %(owners)s::uuid[]) AS h(id, owner) USING (id, owner)
    WHERE b.state = 'claimed' AND NOT b.halted
    ORDER BY b.id FOR UPDATE OF b SKIP LOCKED  -- what is being recorded is over at once
) AS stopped
WHERE b.id = stopped.id
RETURNING b.id
"""

_ISSUING = """
SELECT count(*) FROM {s}.campaigns c
JOIN {s}.batches b ON b.campaign_id = c.id AND b.id > c.low_batch_id AND b.state = 'claimed' AND NOT b.halted
WHERE c.finished_at IS NULL AND c.started_at IS NOT NULL
  AND (%(campaign)s::bigint IS NULL OR c.id = %(campaign)s) AND (%(app)s::bigint IS NULL OR c.app_id = %(app)s)
"""


def halt(transaction: Transaction, batch_ids: Sequence[int], owners: Sequence[UUID]) -> set[int]:
    """Note that these claims issue nothing more; returns the batches of which it is noted now. Others are over, or
    somebody writes to them at the moment."""
    rows = transaction.execute(_HALT, {"ids": list(batch_ids), "owners": list(owners)})
    return {id for (id,) in rows}


def issuing(transaction: Transaction, *, campaign_id: int | None = None, app_id: int | None = None) -> int:
    """How many claims of a campaign, or of an app's campaigns, may still issue pushes."""
    (count,) = transaction.execute(_ISSUING, {"campaign": campaign_id, "app": app_id}).fetchone() or (0,)
    return int(count)
