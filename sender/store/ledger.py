"""The ledger: one final row per campaign and device, whoever writes it and however often. What was really inserted is
counted on the batch row in the same transaction, so that counts and ledger cannot drift apart."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import date
from typing import NamedTuple

import psycopg
from psycopg.rows import TupleRow

from sender.policy.outcomes import INTERNAL_ERROR, MAY_HAVE_BEEN_SENT
from sender.policy.states import Outcome
from sender.policy.verdict import Again, Final
from sender.store import intents
from sender.store.batches import Claim, as_array
from sender.store.database import Transaction
from sender.store.outages import is_of_data

#: Deliveries that wait for a retry and are ended in one transaction: all of a large campaign's would take minutes.
MOST_ENDED = 20_000

_SENT = """
WITH written AS (
    INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, status, attempts, outcome)
    SELECT %(day)s, %(campaign)s, unnest(%(ids)s::bigint[]), 200, 1, 'sent'
    ON CONFLICT DO NOTHING RETURNING 1
) SELECT count(*) FROM written
"""

_FINALS = """
WITH written AS (
    INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, status, attempts, outcome, reason)
    SELECT %(day)s, %(campaign)s, *
    FROM unnest(%(ids)s::bigint[], %(statuses)s::smallint[], %(attempts)s::smallint[], %(outcomes)s::text[],
                %(reasons)s::text[])
    ON CONFLICT DO NOTHING RETURNING outcome, reason
) SELECT outcome, reason, count(*) FROM written GROUP BY outcome, reason
"""

#: Of several batches at once, each of which ends with it: those that are still whose they were, and that nobody holds.
#: All of their rows are locked, in order, before anything else is: see `store.batches`.
_SENT_TOGETHER = """
WITH mine AS MATERIALIZED (
    SELECT b.id, b.campaign_id, b.owner
    FROM unnest(%(batches)s::bigint[], %(epochs)s::int[], %(owners)s::uuid[]) AS a(id, epoch, owner)
    JOIN {s}.batches b ON b.id = a.id AND b.epoch = a.epoch AND b.owner = a.owner AND b.state = 'claimed'
    ORDER BY b.id FOR UPDATE OF b SKIP LOCKED
), sent AS MATERIALIZED (
    SELECT mine.id, mine.owner, mine.campaign_id, d.day, d.device_id
    FROM unnest(%(holders)s::uuid[], %(days)s::date[], %(ids)s::bigint[]) AS d(owner, day, device_id)
    JOIN mine ON mine.owner = d.owner
), written AS (
    INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, status, attempts, outcome)
    SELECT day, campaign_id, device_id, 200, 1, 'sent' FROM sent
    ON CONFLICT DO NOTHING RETURNING campaign_id, device_id
), counted AS (
    SELECT sent.id, sent.owner, count(written.device_id) AS new
    FROM sent LEFT JOIN written USING (campaign_id, device_id) GROUP BY sent.id, sent.owner
)
UPDATE {s}.batches b SET sent = b.sent + counted.new, state = 'done', owner = NULL, finished_at = now()
FROM counted WHERE b.id = counted.id
RETURNING counted.owner, counted.new
"""

_COUNT = """
UPDATE {s}.batches SET
    sent = sent + %(sent)s, rejected = rejected + %(rejected)s, skipped = skipped + %(skipped)s,
    expired = expired + %(expired)s, unknown = unknown + %(unknown)s, cancelled = cancelled + %(cancelled)s,
    failed = failed + %(failed)s,
    state = CASE WHEN %(ends)s THEN 'done' ELSE state END, owner = CASE WHEN %(ends)s THEN NULL ELSE owner END,
    finished_at = CASE WHEN %(ends)s THEN now() ELSE finished_at END,
    reasons = CASE WHEN %(reasons)s::jsonb = '{}' THEN reasons ELSE (
        SELECT jsonb_object_agg(key, total) FROM (
            SELECT key, sum(value::bigint) AS total
            FROM (SELECT * FROM jsonb_each_text(reasons)
                  UNION ALL SELECT * FROM jsonb_each_text(%(reasons)s::jsonb)) AS old_and_new
            GROUP BY key
        ) AS summed) END
WHERE id = %(batch)s
"""

_HOLD_RETRIES = "SELECT FROM {s}.retries WHERE campaign_id = %s AND device_id = ANY(%s) ORDER BY device_id FOR UPDATE"

_END_RETRIES = "DELETE FROM {s}.retries WHERE campaign_id = %s AND device_id = ANY(%s)"

#: The ledger is asked a device at a time, as in `store.batches`. Whatever batch a row names: one that was just put off
#: names none, and its delivery may have become final since the ledger was asked for that.
_END_SETTLED_RETRIES = """
DELETE FROM {s}.retries r
WHERE r.campaign_id = %(campaign)s
  AND r.device_id = ANY((SELECT device_ids FROM {s}.batches WHERE id = %(batch)s)::bigint[])
  AND (SELECT true FROM {s}.deliveries l WHERE l.campaign_started_on = %(day)s AND l.campaign_id = %(campaign)s
       AND l.device_id = r.device_id LIMIT 1)
"""

_AGAIN = """
INSERT INTO {s}.retries (campaign_id, device_id, due_at, attempts, reason, status)
SELECT %(campaign)s, * FROM unnest(%(ids)s::bigint[], %(dues)s::timestamptz[], %(attempts)s::smallint[],
                                   %(reasons)s::text[], %(statuses)s::smallint[]) AS a(device_id)
WHERE (SELECT true FROM {s}.deliveries l WHERE l.campaign_started_on = %(day)s AND l.campaign_id = %(campaign)s
       AND l.device_id = a.device_id LIMIT 1) IS NULL
ON CONFLICT (campaign_id, device_id) DO UPDATE
SET due_at = excluded.due_at, attempts = excluded.attempts, reason = excluded.reason, status = excluded.status,
    batch_id = NULL
"""

_ENDING = """
SELECT c.id, c.key, c.state, c.started_on, c.low_batch_id, c.delivery FROM {s}.campaigns c
WHERE c.state IN ('cancelled', 'failed') AND c.finished_at IS NULL AND c.started_on IS NOT NULL
"""

#: Without those that wait in the retries by now: another batch may be sending them.
_OPEN_OF = """
SELECT b.id, ARRAY(
    SELECT i.id FROM unnest(b.device_ids) AS i(id)
    WHERE (SELECT true FROM {s}.retries r WHERE r.campaign_id = b.campaign_id AND r.device_id = i.id
           AND r.batch_id IS DISTINCT FROM b.id LIMIT 1) IS NULL)
FROM {s}.batches b
WHERE b.campaign_id = %s AND b.id > %s AND b.state = 'open' ORDER BY b.id LIMIT 100 FOR UPDATE OF b SKIP LOCKED
"""

_CLOSE_BATCH = """
UPDATE {s}.batches SET state = 'done', owner = NULL, finished_at = now() WHERE id = %s AND state = 'open'
"""

#: Those in a batch are ended with it: a worker may be claiming it at this moment.
_LAST_RETRIES = """
DELETE FROM {s}.retries r WHERE r.campaign_id = %(campaign)s AND r.device_id = ANY(ARRAY(
    SELECT w.device_id FROM {s}.retries w
    WHERE w.campaign_id = %(campaign)s AND (w.batch_id IS NULL OR NOT EXISTS (
        SELECT FROM {s}.batches b WHERE b.id = w.batch_id AND b.state <> 'done'))
    LIMIT %(most)s FOR UPDATE SKIP LOCKED))
RETURNING r.device_id, r.attempts, r.status
"""

#: On which what was only in the retries is counted; none while somebody else holds it.
_FIRST_BATCH = """
SELECT id FROM {s}.batches WHERE id = (SELECT min(id) FROM {s}.batches WHERE campaign_id = %s) FOR UPDATE SKIP LOCKED
"""


def record(
    transaction: Transaction,
    claim: Claim,
    sent: Sequence[int],
    finals: Sequence[Final],
    *,
    retried: bool,
    ends: bool = False,
) -> dict[str, int]:
    """Write the deliveries of a claim that are final (`sent`: device ids accepted at the first attempt) and have no
    row yet, and count them on its batch. Returns what was counted, by outcome. `retried`: whether rows of the retries,
    which must be held (`hold_retries`), may have to go; `ends`: the batch, which must be held, is done with it."""
    return write(
        transaction,
        batch_id=claim.batch_id,
        campaign_id=claim.campaign.id,
        started_on=claim.campaign.started_on,
        sent=sent,
        finals=finals,
        retried=retried,
        ends=ends,
    )


def record_sent(transaction: Transaction, sent: Sequence[tuple[Claim, Sequence[int]]]) -> psycopg.Cursor[TupleRow]:
    """Write several fresh claims whose devices were all accepted at the first attempt, and end them. Gives the owner of
    each and what was counted, without those that somebody else has or holds, of which nothing is written."""
    places = [(claim, device_id) for claim, device_ids in sent for device_id in device_ids]
    values = {
        "batches": [claim.batch_id for claim, _ in sent],
        "epochs": [claim.epoch for claim, _ in sent],
        "owners": [claim.owner for claim, _ in sent],
        "holders": [claim.owner for claim, _ in places],
        "days": [claim.campaign.started_on for claim, _ in places],
        "ids": [device_id for _, device_id in places],
    }
    return transaction.execute(_SENT_TOGETHER, values)


def write(
    transaction: Transaction,
    *,
    batch_id: int,
    campaign_id: int,
    started_on: date,
    finals: Sequence[Final],
    retried: bool,
    sent: Sequence[int] = (),
    ends: bool = False,
) -> dict[str, int]:
    """Write finals and count those that were new on a batch; see `record`."""
    counts = dict.fromkeys((outcome.value for outcome in Outcome), 0)
    reasons: dict[str, int] = {}
    key = {"day": started_on, "campaign": campaign_id}
    if sent:
        row = transaction.execute(_SENT, key | {"ids": as_array(sent)}).fetchone()
        counts[Outcome.SENT.value] += row[0] if row else 0
    if finals:
        for outcome, reason, count in transaction.execute(_FINALS, key | _columns(finals)):
            counts[outcome] += count
            if reason:
                reasons[reason] = reasons.get(reason, 0) + count
    if retried and (sent or finals):
        end_retries(transaction, campaign_id, [*sent, *(final.device_id for final in finals)])
    if ends or any(counts.values()):
        transaction.execute(_COUNT, counts | {"batch": batch_id, "reasons": json.dumps(reasons), "ends": ends})
    return {outcome: count for outcome, count in counts.items() if count}


def hold_retries(transaction: Transaction, campaign_id: int, device_ids: Collection[int]) -> None:
    """Hold what these devices wait with for another attempt, until the transaction ends: before anything is written of
    a delivery that another batch may have too, so that a late answer, a retry and the end of the campaign never wait
    for each other crosswise."""
    if device_ids:
        transaction.execute(_HOLD_RETRIES, (campaign_id, list(device_ids)))


def end_retries(transaction: Transaction, campaign_id: int, device_ids: Sequence[int]) -> None:
    """Remove these devices from those that wait for another attempt."""
    if device_ids:
        transaction.execute(_END_RETRIES, (campaign_id, list(device_ids)))


def count_unwritten(transaction: Transaction, campaign_id: int, batch_id: int, device_id: int) -> None:
    """Count a delivery that the ledger does not take as failed: the counts still add up, and nothing waits for it."""
    counts = dict.fromkeys((outcome.value for outcome in Outcome), 0) | {Outcome.FAILED.value: 1}
    reasons = json.dumps({INTERNAL_ERROR: 1})
    transaction.execute(_COUNT, counts | {"batch": batch_id, "reasons": reasons, "ends": False})
    end_retries(transaction, campaign_id, [device_id])


def end_settled_retries(transaction: Transaction, claim: Claim) -> None:
    """Remove what a retry batch holds of deliveries that became final elsewhere meanwhile: by a late answer."""
    transaction.execute(
        _END_SETTLED_RETRIES,
        {"campaign": claim.campaign.id, "batch": claim.batch_id, "day": claim.campaign.started_on},
    )


def postpone(transaction: Transaction, claim: Claim, again: Sequence[Again]) -> None:
    """Have deliveries of a claim wait in the retries."""
    if not again:
        return
    transaction.execute(
        _AGAIN,
        {
            "day": claim.campaign.started_on,
            "campaign": claim.campaign.id,
            "ids": [item.device_id for item in again],
            "dues": [item.due_at for item in again],
            "attempts": [item.attempts for item in again],
            "reasons": [item.reason for item in again],
            "statuses": [item.status for item in again],
        },
    )


class Ending(NamedTuple):
    """A campaign that was cancelled or failed, and is not finished."""

    id: int
    key: str
    state: str
    started_on: date
    low_batch_id: int
    delivery: str

    def final(
        self, device_id: int, announced: Collection[int], *, attempts: int = 0, status: int | None = None
    ) -> Final:
        """The end of one of its deliveries: what may have been sent is not called cancelled."""
        if device_id in announced:
            outcome, reason = Outcome.UNKNOWN, MAY_HAVE_BEEN_SENT
        elif self.state == "cancelled":
            outcome, reason = Outcome.CANCELLED, "Cancelled"
        else:
            outcome, reason = Outcome.FAILED, "CampaignFailed"
        return Final(device_id=device_id, outcome=outcome, reason=reason, status=status, attempts=attempts)


def ending(transaction: Transaction) -> list[Ending]:
    """The campaigns that were cancelled or failed, and are not finished."""
    return [Ending(*row) for row in transaction.execute(_ENDING)]


def end_open(transaction: Transaction, ending: Ending) -> int:
    """Record what a cancelled or failed campaign will not send any more; returns how many deliveries.

    Claimed batches are left to their workers, which stop, record and release; the next call takes them.
    """
    ended = 0
    first = transaction.execute(_FIRST_BATCH, (ending.id,)).fetchone()
    found = transaction.execute(_OPEN_OF, (ending.id, ending.low_batch_id)).fetchall()
    hold_retries(transaction, ending.id, [id for _, device_ids in found for id in device_ids])
    for batch_id, device_ids in found:
        announced = _take_intents(transaction, ending, device_ids)
        finals = [ending.final(id, announced) for id in device_ids]
        ended += _write_ended(transaction, ending, batch_id, finals)
        transaction.execute(_CLOSE_BATCH, (batch_id,))
    if first is None:
        return ended
    waiting = transaction.execute(_LAST_RETRIES, {"campaign": ending.id, "most": MOST_ENDED}).fetchall()
    if waiting:
        announced = _take_intents(transaction, ending, [id for id, _, _ in waiting])
        finals = [ending.final(id, announced, attempts=attempts, status=status) for id, attempts, status in waiting]
        ended += _write_ended(transaction, ending, first[0], finals)
    return ended


def _take_intents(transaction: Transaction, ending: Ending, device_ids: Sequence[int]) -> set[int]:
    if ending.delivery != "at_most_once":
        return set()
    announced = intents.open_of(transaction, ending.id, device_ids)
    intents.end(transaction, ending.id, announced)
    return announced


def _write_ended(transaction: Transaction, ending: Ending, batch_id: int, finals: Sequence[Final]) -> int:
    """Write the ends of deliveries; what the ledger refuses is told apart, and costs one delivery."""
    try:
        with transaction.connection.transaction():  # a savepoint
            counted = write(
                transaction,
                batch_id=batch_id,
                campaign_id=ending.id,
                started_on=ending.started_on,
                finals=finals,
                retried=True,
            )
        return sum(counted.values())
    except psycopg.Error as error:
        if not is_of_data(error):
            raise
    if len(finals) == 1:
        count_unwritten(transaction, ending.id, batch_id, finals[0].device_id)
        return 1
    half = len(finals) // 2
    parts = (finals[:half], finals[half:])
    return sum(_write_ended(transaction, ending, batch_id, part) for part in parts)


def _columns(finals: Sequence[Final]) -> dict[str, list[object]]:
    return {
        "ids": [final.device_id for final in finals],
        "statuses": [final.status for final in finals],
        "attempts": [final.attempts for final in finals],
        "outcomes": [final.outcome.value for final in finals],
        "reasons": [final.reason for final in finals],
    }
