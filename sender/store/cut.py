"""Cutting the audience into batches by keyset, publishing them, and gathering due retries into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sender.audience import Segment
from sender.model import PushType
from sender.policy.states import CanaryState
from sender.store import canaries, quarantine
from sender.store.batches import as_array
from sender.store.database import Transaction
from sender.store.segments import compile_segment, reachable
from sender.store.tables import Device


@dataclass(frozen=True, slots=True, kw_only=True)
class Cutting:
    """How far a campaign is cut; its row is held until the transaction ends."""

    id: int
    key: str
    app_id: int
    segment: Segment
    push_type: PushType
    rate: float | None  # the tightest of campaign, app and installation, in pushes a second
    batch_size: int
    cursor: int
    limit: int
    finished: bool
    audience_estimate: int
    low_batch_id: int
    canary: dict[str, Any] | None
    canary_state: str | None
    now: datetime


#: Batches of one campaign that may be open for more of its retries to be gathered: a slow one has many small ones, and
#: whoever looks at its open work reads them all.
MOST_GATHERED = 2_000

_HOLD = """
SELECT c.id, c.key, c.app_id, c.segment, c.push_type,
       least(c.rate, a.rate, %(installation)s::float8) AS rate, c.batch_size, c.cut_cursor AS cursor,
       c.cut_limit AS limit, c.cut_finished AS finished, c.audience_estimate, c.low_batch_id,
       c.canary, c.canary_state, c.started_at AS now
FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
WHERE c.id = %(campaign)s AND c.state = 'running' AND a.state = 'active'
FOR NO KEY UPDATE OF c
"""

#: After the cut nothing else moves the mark of a campaign that waits for its last retries.
_ADVANCE_LOW = """
UPDATE {s}.campaigns c SET low_batch_id = mark.low
FROM (
    SELECT c.id, coalesce(min(b.id) FILTER (WHERE b.state <> 'done'), max(b.id) + 1) - 1 AS low
    FROM {s}.campaigns c JOIN {s}.batches b ON b.campaign_id = c.id AND b.id > c.low_batch_id
    WHERE c.id = ANY(%s) GROUP BY c.id
) AS mark
WHERE c.id = mark.id AND mark.low > c.low_batch_id
"""

_HOLD_CUT = """
SELECT id FROM {s}.campaigns WHERE finished_at IS NULL AND cut_finished ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
"""

_INSERT = """
INSERT INTO {s}.batches (campaign_id, kind, device_ids, size)
SELECT %(campaign)s, %(kind)s, ids::bigint[], cardinality(ids::bigint[]) FROM unnest(%(arrays)s::text[]) AS ids
RETURNING id
"""

_ADVANCE = """
UPDATE {s}.campaigns SET cut_cursor = %(cursor)s, cut_finished = %(finished)s, cut_devices = cut_devices + %(devices)s
WHERE id = %(campaign)s RETURNING cut_devices
"""

_ADD_RETESTS = """
UPDATE {s}.campaigns SET retested = retested + %(devices)s, cut_devices = cut_devices + %(devices)s
WHERE id = %(campaign)s
"""

_STRAGGLING = """
SELECT c.id, c.key, c.low_batch_id, c.audience_estimate, count(*) FILTER (WHERE b.published_at IS NOT NULL)
FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
JOIN {s}.batches b ON b.campaign_id = c.id AND b.id > c.low_batch_id AND b.state <> 'done'
WHERE c.state = 'running' AND a.state = 'active'
  AND (c.fanout_until IS NULL OR c.fanout_until < now() OR c.fanout_until > now() + interval '1 minute')
GROUP BY c.id
HAVING bool_or(b.state = 'open' AND b.published_at IS NULL AND (b.due_at IS NULL OR b.due_at <= now()))
"""

_UNPUBLISH = "UPDATE {s}.batches SET published_at = NULL WHERE id = ANY(%s) AND state = 'open'"

_END_TURN = "UPDATE {s}.campaigns SET fanout_until = NULL WHERE id = %s"

#: Campaign by campaign, so that the retries of paused ones cost nothing; nor those of one that has enough open. Held
#: until the batches are there to be seen: a fan-out that cannot see them would move its low-water mark past them.
_WAITING = """
SELECT c.id, least(c.rate, a.rate, %(installation)s::float8), c.batch_size, %(open)s - o.batches
FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
CROSS JOIN LATERAL (
    SELECT count(*) AS batches FROM (
        SELECT FROM {s}.batches b WHERE b.campaign_id = c.id AND b.id > c.low_batch_id AND b.state <> 'done'
        ORDER BY b.id LIMIT %(open)s) AS each
) AS o
WHERE c.state = 'running' AND a.state = 'active' AND c.finished_at IS NULL AND o.batches < %(open)s
  AND (SELECT true FROM {s}.retries r
       WHERE r.campaign_id = c.id AND r.batch_id IS NULL AND r.due_at <= now() ORDER BY r.due_at LIMIT 1)
ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
"""

_DUE_RETRIES = """
SELECT device_id FROM {s}.retries WHERE campaign_id = %(campaign)s AND batch_id IS NULL AND due_at <= now()
ORDER BY due_at LIMIT %(most)s FOR UPDATE SKIP LOCKED
"""

_ASSIGN = """
UPDATE {s}.retries r SET batch_id = i.batch
FROM unnest(%(ids)s::bigint[], %(batches)s::bigint[]) AS i(id, batch)
WHERE r.campaign_id = %(campaign)s AND r.device_id = i.id
"""


def hold(transaction: Transaction, campaign_id: int, *, installation_rate: float | None) -> Cutting | None:
    """The campaign's cut, for this transaction alone (a second one waits); None when it does not run."""
    row = transaction.row(_HOLD, {"campaign": campaign_id, "installation": installation_rate})
    if row is None:
        return None
    return Cutting(**row | {"segment": Segment.from_json(row["segment"]), "push_type": PushType(row["push_type"])})


def cut(
    transaction: Transaction, cutting: Cutting, *, size: int, batches: int, window: int, retest_share: float = 0.0
) -> tuple[int, bool]:
    """Cut at most `batches` batches of `size` devices, looking at no more than `window` ids; at the end of it also
    the share of what was cut that is taken from quarantine.

    Returns (devices cut, whether what may be cut now is cut to its end: the sample of a canary, or the audience).
    """
    device = Device.__table__  # type: ignore[attr-defined]
    top = min(cutting.cursor + window, cutting.limit)
    wanted = size * batches
    statement = (
        sa.select(device.c.id)
        .where(
            device.c.app_id == cutting.app_id,
            device.c.id > cutting.cursor,
            device.c.id <= top,
            reachable(cutting.push_type, cutting.app_id),
            compile_segment(cutting.segment, cutting.app_id, cutting.now),
            *canaries.part(cutting.key, cutting.canary, cutting.canary_state),
        )
        .order_by(device.c.id)
        .limit(wanted)
    )
    ids = [id for (id,) in transaction.execute(statement)]
    full = len(ids) == wanted
    cursor = ids[-1] if full else top
    finished = cursor >= cutting.limit
    if ids:
        insert(transaction, cutting.id, "first", [ids[at : at + size] for at in range(0, len(ids), size)])
    (whole,) = transaction.execute(
        _ADVANCE, {"campaign": cutting.id, "cursor": cursor, "finished": finished, "devices": len(ids)}
    ).fetchone() or (0,)
    if finished and cutting.canary_state in (None, CanaryState.PASSED):
        return len(ids) + _cut_retests(transaction, cutting, most=int(whole * retest_share), size=size), finished
    return len(ids), finished


def _cut_retests(transaction: Transaction, cutting: Cutting, *, most: int, size: int) -> int:
    """Add quarantined devices of the segment, the longest ago first; returns how many."""
    ids = quarantine.to_retest(
        transaction,
        cutting.app_id,
        cutting.segment,
        cutting.push_type,
        campaign_id=cutting.id,
        limit=cutting.limit,
        started_at=cutting.now,
        most=most,
    )
    if ids:
        insert(transaction, cutting.id, "retest", [ids[at : at + size] for at in range(0, len(ids), size)])
        transaction.execute(_ADD_RETESTS, {"campaign": cutting.id, "devices": len(ids)})
    return len(ids)


def insert(transaction: Transaction, campaign_id: int, kind: str, batches: Sequence[Sequence[int]]) -> list[int]:
    """Write batches; returns their ids."""
    values = {"campaign": campaign_id, "kind": kind, "arrays": [as_array(ids) for ids in batches]}
    return [id for (id,) in transaction.execute(_INSERT, values)]


def advance_low(transaction: Transaction) -> None:
    """Move the low-water marks of campaigns that are cut to their end. Their rows are held first, so that no batch of
    theirs can be written unseen; one that somebody else holds is left for the next time."""
    held = [id for (id,) in transaction.execute(_HOLD_CUT)]
    if held:
        transaction.execute(_ADVANCE_LOW, (held,))


def unpublish(transaction: Transaction, batch_ids: Sequence[int]) -> None:
    """Take back that batches are published: the broker did not take them."""
    transaction.execute(_UNPUBLISH, (list(batch_ids),))


def end_turn(transaction: Transaction, campaign_id: int) -> None:
    """Give the reservation of a campaign back: the next tick has it go on, if anything is left to be published."""
    transaction.execute(_END_TURN, (campaign_id,))


def straggling(transaction: Transaction) -> list[tuple[int, str, int, int, int]]:
    """Campaigns with open batches that no fan-out will publish: (id, key, low-water mark, audience, batches that are
    published or claimed already)."""
    return [tuple(row) for row in transaction.execute(_STRAGGLING)]


def gather_retries(
    transaction: Transaction,
    *,
    most: int,
    size_at: Callable[[float | None, int], int],
    installation_rate: float | None = None,
) -> int:
    """Put at most `most` due retries into batches of their campaigns; returns how many. The campaigns share them out,
    each as far as it has room for more open batches; one whose row somebody else holds is left for the next time."""
    left = most
    waiting = transaction.execute(_WAITING, {"open": MOST_GATHERED, "installation": installation_rate}).fetchall()
    for others, (campaign_id, rate, wanted, room) in zip(reversed(range(len(waiting))), waiting, strict=True):
        size = size_at(rate, wanted)
        due = {"campaign": campaign_id, "most": min(-(-left // (others + 1)), room * size)}
        ids = sorted(id for (id,) in transaction.execute(_DUE_RETRIES, due))
        groups = [ids[at : at + size] for at in range(0, len(ids), size)]
        made = insert(transaction, campaign_id, "retry", groups)
        places = [batch_id for batch_id, group in zip(made, groups, strict=True) for _ in group]
        transaction.execute(_ASSIGN, {"ids": ids, "batches": places, "campaign": campaign_id})
        left -= len(ids)
    return most - left
