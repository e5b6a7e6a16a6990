"""What is left of a finished campaign after a while: its counts, folded up into its own row, and no batch rows, which
hold eight bytes for every device. Also what the guard, the intents and the limits kept of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sender.store.database import Transaction

#: Goes from campaign to campaign by the index, over those that have batches at all.
_WITH_BATCHES = """
WITH RECURSIVE has(campaign_id) AS (
    (SELECT campaign_id FROM {s}.batches WHERE campaign_id > %(after)s ORDER BY campaign_id LIMIT 1)
    UNION ALL
    SELECT (SELECT b.campaign_id FROM {s}.batches b WHERE b.campaign_id > has.campaign_id
            ORDER BY b.campaign_id LIMIT 1)
    FROM has WHERE has.campaign_id IS NOT NULL
)
SELECT c.id FROM has JOIN {s}.campaigns c ON c.id = has.campaign_id
WHERE c.finished_at < now() - make_interval(days => %(days)s)
ORDER BY c.id LIMIT %(most)s
"""

_FOLD = """
UPDATE {s}.campaigns c
SET totals = counted.totals || jsonb_build_object('reasons', coalesce(named.reasons, '{}'::jsonb))
FROM (
    SELECT campaign_id, jsonb_build_object(
        'batches', count(*), 'last_batch_at', max(finished_at),
        'sent', coalesce(sum(sent), 0), 'rejected', coalesce(sum(rejected), 0), 'skipped', coalesce(sum(skipped), 0),
        'expired', coalesce(sum(expired), 0), 'unknown', coalesce(sum(unknown), 0),
        'cancelled', coalesce(sum(cancelled), 0), 'failed', coalesce(sum(failed), 0)) AS totals
    FROM {s}.batches WHERE campaign_id = ANY(%(campaigns)s) GROUP BY campaign_id
) AS counted
LEFT JOIN (
    SELECT campaign_id, jsonb_object_agg(reason, n) AS reasons
    FROM (SELECT campaign_id, each.key AS reason, sum(each.value::bigint) AS n
          FROM {s}.batches, jsonb_each_text(reasons) AS each
          WHERE campaign_id = ANY(%(campaigns)s) AND reasons <> '{}'::jsonb GROUP BY 1, 2) AS summed
    GROUP BY campaign_id
) AS named USING (campaign_id)
WHERE c.id = counted.campaign_id AND c.totals IS NULL AND c.finished_at IS NOT NULL
RETURNING c.id, c.key
"""

_DELETE_BATCHES = """
DELETE FROM {s}.batches WHERE id = ANY(ARRAY(
    SELECT b.id FROM {s}.batches b JOIN {s}.campaigns c ON c.id = b.campaign_id
    WHERE b.campaign_id = ANY(%(campaigns)s) AND c.totals IS NOT NULL ORDER BY b.campaign_id, b.id LIMIT %(most)s))
"""

#: What was kept for the sake of sending.
_BOOKS = ("trials", "reservations", "staged", "intents")

_FORGET_LIMITS = """
DELETE FROM {s}.limits l
WHERE l.scope LIKE 'campaign:%%' AND NOT EXISTS (
    SELECT FROM {s}.campaigns c
    WHERE c.id = substring(l.scope FROM '^campaign:([0-9]+)')::bigint
      AND (c.finished_at IS NULL OR c.finished_at > now() - make_interval(secs => %s)))
"""


def foldable(transaction: Transaction, *, days: int, after: int, most: int) -> list[int]:
    """Campaigns that have batches and finished more than so many days ago, by id, from `after` on."""
    rows = transaction.execute(_WITH_BATCHES, {"days": days, "after": after, "most": most})
    return [id for (id,) in rows]


def fold(transaction: Transaction, campaign_ids: Sequence[int]) -> list[str]:
    """Write the counts of finished campaigns' batches on their own rows: reports read them there from now on.

    Returns the keys of those of which that had not been done."""
    folded = transaction.execute(_FOLD, {"campaigns": list(campaign_ids)}).fetchall()
    for table in _BOOKS:
        transaction.execute(f"DELETE FROM {{s}}.{table} WHERE campaign_id = ANY(%s)", ([id for id, _ in folded],))
    return [key for _, key in folded]


def delete_batches(transaction: Transaction, campaign_ids: Sequence[int], *, most: int) -> int:
    """Delete batches of campaigns whose counts are folded up; returns how many."""
    return transaction.execute(_DELETE_BATCHES, {"campaigns": list(campaign_ids), "most": most}).rowcount


def forget_limits(transaction: Transaction, *, seconds: float) -> int:
    """Delete the limits of campaigns that finished so long ago; returns how many."""
    return transaction.execute(_FORGET_LIMITS, (seconds,)).rowcount
