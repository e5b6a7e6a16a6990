"""Which campaigns have pushes to send now, of those that share a limit with others."""

from __future__ import annotations

from sender.policy.pace import LONGEST_TURN
from sender.policy.sharing import Wanting
from sender.store.database import Transaction

#: One that has no open batch yet wants some as long as it is cut; one whose batches all rest (their credential does,
#: say) wants nothing. Looked up a campaign at a time, at the first of its open batches.
_WANTING = """
SELECT c.id, c.app_id, c.rate, a.rate AS app_rate
FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
WHERE c.state = 'running' AND a.state = 'active' AND c.finished_at IS NULL AND c.audience_estimate > %(urgent)s
  AND (a.rate IS NOT NULL OR %(installation)s)
  AND coalesce((
      SELECT bool_or(o.due_at IS NULL OR o.due_at < now() + make_interval(secs => %(soon)s))
      FROM (SELECT b.due_at FROM {s}.batches b WHERE b.campaign_id = c.id AND b.id > c.low_batch_id
                AND b.state <> 'done' ORDER BY b.id LIMIT %(looked_at)s) AS o), NOT c.cut_finished)
"""

#: Seconds within which a batch is due whose campaign has something to send now: that it waits for its turn, and is told
#: to come when it is, does not make its turn another's.
SOON = LONGEST_TURN + 2.0

#: Open batches of one campaign that are looked at.
LOOKED_AT = 50


def wanting(transaction: Transaction, *, installation_limited: bool, urgent: int) -> list[Wanting]:
    """The running campaigns under shared limits that have something to send. Audiences of up to `urgent` devices are
    left out: they do not wait for their share."""
    values = {"installation": installation_limited, "urgent": urgent, "soon": SOON, "looked_at": LOOKED_AT}
    return [Wanting(**row) for row in transaction.rows(_WANTING, values)]
