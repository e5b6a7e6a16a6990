"""Messages that are lost: their batches are taken for unpublished again, and published anew.

Queues are first in, first out. So a message is lost when one that was published well after it, into the same queue,
was taken by a worker already; and when it is old while no message waits at all. A message that merely waits for long,
behind others, is neither: nothing is published twice because much is to do.
"""

from __future__ import annotations

from sender.store.database import Transaction

#: Small campaigns go by a queue of their own. A time in the future was written before the clock was set back.
_FORGET = """
WITH published AS MATERIALIZED (
    SELECT b.id, b.state, c.state AS campaign_state, c.audience_estimate <= %(urgent)s AS urgent,
           greatest(b.published_at, b.due_at) AS at
    FROM {s}.campaigns c JOIN {s}.batches b ON b.campaign_id = c.id AND b.id > c.low_batch_id
    WHERE c.finished_at IS NULL AND c.started_at IS NOT NULL AND b.published_at IS NOT NULL
), taken AS MATERIALIZED (
    SELECT urgent, max(at) AS latest FROM published WHERE state <> 'open' AND at <= now() GROUP BY urgent
), lost AS (
    SELECT p.id FROM published p LEFT JOIN taken t USING (urgent)
    WHERE p.state = 'open' AND p.campaign_state = 'running' AND (
        p.at < now() - make_interval(secs => %(longest)s)
        OR p.at < t.latest - make_interval(secs => %(overtaken)s)
        OR p.at > now() + make_interval(secs => %(ahead)s))
), free AS (  -- what somebody holds is being claimed: not lost, and not waited for
    SELECT b.id FROM {s}.batches b JOIN lost USING (id)
    WHERE b.state = 'open' AND b.published_at IS NOT NULL ORDER BY b.id FOR UPDATE OF b SKIP LOCKED
)
UPDATE {s}.batches b SET published_at = NULL FROM free WHERE b.id = free.id
RETURNING b.id
"""


def forget(transaction: Transaction, *, longest: float, overtaken: float, ahead: float, urgent: int) -> list[int]:
    """Take back that batches are published whose messages are lost; returns those batches.

    Lost after `longest` seconds in any case, and once a message was taken that is `overtaken` seconds younger; `ahead`:
    seconds in the future that no batch was ever published. `urgent`: the largest audience that has the other queue.
    """
    values = {"longest": longest, "overtaken": overtaken, "ahead": ahead, "urgent": urgent}
    return [id for (id,) in transaction.execute(_FORGET, values)]
