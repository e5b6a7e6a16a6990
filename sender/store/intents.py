"""Intents: what an at-most-once campaign is about to push, written before the push and gone when its answer is known.

Whoever finds an intent of another claim knows that the push may have been made, and never makes it again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sender.store.batches import Claim
from sender.store.database import Transaction

#: The claim's row is held: a sweep that takes the batch back meanwhile must not miss what is written here.
_ANNOUNCE = """
WITH mine AS (
    SELECT id, epoch FROM {s}.batches
    WHERE id = %(batch)s AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed' FOR KEY SHARE
)
INSERT INTO {s}.intents (campaign_id, device_id, batch_id, epoch)
SELECT %(campaign)s, i.id, mine.id, mine.epoch FROM mine, unnest(%(ids)s::bigint[]) AS i(id)
ON CONFLICT (campaign_id, device_id) DO UPDATE SET epoch = excluded.epoch
WHERE intents.batch_id = excluded.batch_id AND intents.epoch = excluded.epoch
RETURNING device_id
"""

_OPEN_OF = "SELECT device_id FROM {s}.intents WHERE campaign_id = %s AND device_id = ANY(%s)"

_END = "DELETE FROM {s}.intents WHERE campaign_id = %s AND device_id = ANY(%s)"

_END_OWN = _END + " AND batch_id = %s AND epoch = %s"

_FORGET = """
DELETE FROM {s}.intents i USING {s}.campaigns c WHERE c.id = i.campaign_id AND c.finished_at IS NOT NULL
"""


def announce(transaction: Transaction, claim: Claim, device_ids: Sequence[int]) -> set[int]:
    """Write that a claim is about to push to these devices. Returns those that it may push to once the transaction is
    committed: none when the claim is no longer ours, none that another claim has announced."""
    values = {
        "batch": claim.batch_id,
        "epoch": claim.epoch,
        "owner": claim.owner,
        "campaign": claim.campaign.id,
        "ids": list(device_ids),
    }
    return {id for (id,) in transaction.execute(_ANNOUNCE, values)}


def open_of(transaction: Transaction, campaign_id: int, device_ids: Sequence[int]) -> set[int]:
    """Which of these devices have an intent."""
    return {id for (id,) in transaction.execute(_OPEN_OF, (campaign_id, list(device_ids)))}


def end(transaction: Transaction, campaign_id: int, device_ids: Collection[int]) -> None:
    """Remove the intents of these devices, whoever wrote them."""
    transaction.execute(_END, (campaign_id, list(device_ids)))


def end_own(transaction: Transaction, claim: Claim, device_ids: Collection[int]) -> None:
    """Remove those intents of these devices that this very claim has written."""
    transaction.execute(_END_OWN, (claim.campaign.id, list(device_ids), claim.batch_id, claim.epoch))


def forget_finished(transaction: Transaction) -> int:
    """Remove what finished campaigns have left behind. Nothing does: this keeps it so."""
    return transaction.execute(_FORGET).rowcount
