"""Batches that failed too often: their devices go one by one, and the one that fails by itself ends as failed.

(What counts as too often is in `policy.poison`.)
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sender.policy.outcomes import INTERNAL_ERROR, MAY_HAVE_BEEN_SENT
from sender.policy.poison import MOST_FAILURES, MOST_FAILURES_ALONE
from sender.policy.states import Outcome
from sender.policy.verdict import Final
from sender.store import intents, ledger
from sender.store.database import Transaction

#: Not of campaigns that end early: what those have open is ended with them.
_SUSPECTED = """
SELECT b.id FROM {s}.campaigns c JOIN {s}.batches b ON b.campaign_id = c.id AND b.id > c.low_batch_id
WHERE c.finished_at IS NULL AND c.state IN ('running', 'paused') AND b.state = 'open'
  AND b.failures >= CASE WHEN b.size > 1 THEN %(together)s ELSE %(alone)s END
ORDER BY b.id LIMIT 20
"""

#: Held until the new batches are there to be seen: nobody may move the low-water mark past them. While somebody else
#: holds it, it can wait.
_HOLD_CAMPAIGN = """
SELECT c.id, c.key, c.started_on FROM {s}.campaigns c
WHERE c.id = (SELECT campaign_id FROM {s}.batches WHERE id = %s) FOR NO KEY UPDATE SKIP LOCKED
"""

_HOLD_BATCH = """
SELECT device_ids, error FROM {s}.batches
WHERE id = %(batch)s AND state = 'open' AND failures >= CASE WHEN size > 1 THEN %(together)s ELSE %(alone)s END
FOR UPDATE SKIP LOCKED
"""

#: As claimed before: what looks at a new batch's devices looks at the ledger and the retries as well.
_SPLIT = """
WITH made AS (
    INSERT INTO {s}.batches (campaign_id, kind, wave, device_ids, size, epoch)
    SELECT b.campaign_id, b.kind, b.wave, ARRAY[i.id], 1, greatest(b.epoch, 1)
    FROM {s}.batches b CROSS JOIN unnest(b.device_ids) AS i(id)
    LEFT JOIN LATERAL (
        SELECT r.device_id, r.batch_id FROM {s}.retries r
        WHERE r.campaign_id = b.campaign_id AND r.device_id = i.id LIMIT 1
    ) r ON true
    LEFT JOIN LATERAL (
        SELECT true AS final FROM {s}.deliveries l
        WHERE l.campaign_started_on = %(day)s AND l.campaign_id = b.campaign_id AND l.device_id = i.id LIMIT 1
    ) l ON true
    WHERE b.id = %(batch)s AND l.final IS NULL AND (r.device_id IS NULL OR r.batch_id = b.id)
    ORDER BY i.id
    RETURNING id, device_ids[1] AS device_id
), moved AS (
    UPDATE {s}.retries r SET batch_id = made.id FROM made
    WHERE r.campaign_id = %(campaign)s AND r.device_id = made.device_id AND r.batch_id = %(batch)s
) SELECT count(*) FROM made
"""

_CLOSE = "UPDATE {s}.batches SET state = 'done', owner = NULL, finished_at = now() WHERE id = %s AND state = 'open'"

_ERRORS = """
SELECT b.error, count(*) FROM {s}.campaigns c JOIN {s}.batches b ON b.campaign_id = c.id
WHERE c.key = %s AND b.error IS NOT NULL AND (b.failed > 0 OR b.state <> 'done')
GROUP BY b.error ORDER BY count(*) DESC, b.error LIMIT 5
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sentence:
    """What became of a batch that failed too often: parted into singles, or the end of the one device that it was."""

    campaign: str
    devices: int
    device_id: int | None  # the one that ended
    error: str | None


def suspected(transaction: Transaction) -> list[int]:
    """Open batches that failed too often."""
    return [id for (id,) in transaction.execute(_SUSPECTED, _caps())]


def part(transaction: Transaction, batch_id: int) -> Sentence | None:
    """Have the devices of a batch go one by one; a single one ends as failed. None when there is nothing to do."""
    held = _hold(transaction, batch_id)
    if held is None:
        return None
    campaign_id, key, started_on, device_ids, error = held
    if len(device_ids) == 1:
        _fail(transaction, batch_id, campaign_id, started_on, device_ids[0])
        made = 0
    else:
        values = {"batch": batch_id, "campaign": campaign_id, "day": started_on}
        (made,) = transaction.execute(_SPLIT, values).fetchone() or (0,)
    transaction.execute(_CLOSE, (batch_id,))
    failed = device_ids[0] if len(device_ids) == 1 else None
    return Sentence(campaign=key, devices=made, device_id=failed, error=error)


def write_off(transaction: Transaction, batch_id: int) -> Sentence | None:
    """End a single device that the ledger does not take: counted as failed, without a row."""
    held = _hold(transaction, batch_id)
    if held is None or len(held[3]) > 1:
        return None
    campaign_id, key, _, (device_id,), error = held
    ledger.count_unwritten(transaction, campaign_id, batch_id, device_id)
    intents.end(transaction, campaign_id, [device_id])
    transaction.execute(_CLOSE, (batch_id,))
    return Sentence(campaign=key, devices=0, device_id=device_id, error=error)


def errors(transaction: Transaction, campaign: str) -> dict[str, int]:
    """The errors of our own that a campaign's open batches were last given back with, and those that deliveries failed
    by: with the number of batches, the most frequent first."""
    return dict(transaction.execute(_ERRORS, (campaign,)).fetchall())


def _hold(transaction: Transaction, batch_id: int) -> tuple[int, str, date, list[int], str | None] | None:
    campaign = transaction.execute(_HOLD_CAMPAIGN, (batch_id,)).fetchone()
    if campaign is None:
        return None
    batch = transaction.execute(_HOLD_BATCH, {"batch": batch_id} | _caps()).fetchone()
    return None if batch is None else (*campaign, *batch)


def _fail(transaction: Transaction, batch_id: int, campaign_id: int, started_on: date, device_id: int) -> None:
    """Failed, unless it may have been sent: then nobody knows."""
    announced = intents.open_of(transaction, campaign_id, [device_id])
    outcome, reason = (Outcome.UNKNOWN, MAY_HAVE_BEEN_SENT) if announced else (Outcome.FAILED, INTERNAL_ERROR)
    ledger.hold_retries(transaction, campaign_id, [device_id])
    ledger.write(
        transaction,
        batch_id=batch_id,
        campaign_id=campaign_id,
        started_on=started_on,
        finals=[Final(device_id=device_id, outcome=outcome, reason=reason, attempts=0)],
        retried=True,
    )
    intents.end(transaction, campaign_id, [device_id])


def _caps() -> dict[str, int]:
    return {"together": MOST_FAILURES, "alone": MOST_FAILURES_ALONE}
