"""What a segment says of other campaigns, checked: whom they were sent to must be known, or "not sent" is a lie."""

from __future__ import annotations

from sender.audience import Segment
from sender.store.database import Transaction

_FOUND = "SELECT key, started_on, sent_removed_at FROM {s}.campaigns WHERE key = ANY(%s) ORDER BY id"

#: Retention takes these rows FOR UPDATE before it removes anything: either it sees the campaign that is enqueued now,
#: or this sees that the rows are gone. Nothing else waits for such a lock.
_FOUND_AND_HELD = _FOUND + " FOR KEY SHARE"


def faults(transaction: Transaction, segment: Segment, *, hold: bool = False) -> list[str]:
    """Why a segment's campaigns cannot be referred to; empty when they can. `hold`: nor removed until the transaction
    has ended, in which whatever refers to them is written."""
    keys = sorted(segment.campaign_keys())
    if not keys:
        return []
    rows = transaction.rows(_FOUND_AND_HELD if hold else _FOUND, (keys,))
    found = {row["key"]: row for row in rows}
    said = [f"not_sent: no campaign {key!r}" for key in keys if key not in found]
    return said + [
        f"not_sent: whom campaign {key!r} of {row['started_on']} was sent to is not kept any more, since "
        f"{row['sent_removed_at']:%Y-%m-%d} (SENDER_RETAIN_SENT): leave it out, or exclude by an attribute"
        for key, row in sorted(found.items())
        if row["sent_removed_at"] is not None
    ]
