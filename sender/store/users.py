"""The application's users: an external id here, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sender.policy.states import Outcome
from sender.store.database import Transaction


def find(transaction: Transaction, external_id: str) -> int | None:
    """The surrogate id of a user, or None."""
    row = transaction.execute("SELECT id FROM {s}.users WHERE external_id = %s", [external_id]).fetchone()
    return row[0] if row else None


def ensure(transaction: Transaction, external_id: str) -> int:
    """The surrogate id of a user, made when it is not there. Two callers at once get the same one."""
    while (found := find(transaction, external_id)) is None:
        row = transaction.execute(
            "INSERT INTO {s}.users (external_id) VALUES (%s) ON CONFLICT (external_id) DO NOTHING RETURNING id",
            [external_id],
        ).fetchone()
        if row:
            return int(row[0])
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentDelivery:
    """What became of one push to one of the user's devices."""

    at: datetime
    campaign: str
    app: str
    token: str = field(repr=False)
    outcome: Outcome
    status: int | None
    reason: str | None
    attempts: int


#: The ledger is looked at by its primary key: the newest campaigns of the devices' apps, times the devices. The LIMIT
#: keeps PostgreSQL from joining all of it.
_DELIVERIES = """
SELECT l.at, k.key AS campaign, a.bundle_id AS app, d.token, l.outcome, l.status, l.reason, l.attempts
FROM {s}.devices d
JOIN {s}.apps a ON a.id = d.app_id
CROSS JOIN LATERAL (
    SELECT c.id, c.key, c.started_on FROM {s}.campaigns c
    WHERE c.app_id = d.app_id AND c.started_on IS NOT NULL ORDER BY c.id DESC LIMIT %(campaigns)s
) k
CROSS JOIN LATERAL (
    SELECT at, outcome, status, reason, attempts FROM {s}.deliveries
    WHERE campaign_started_on = k.started_on AND campaign_id = k.id AND device_id = d.id LIMIT 1
) l
WHERE d.id = ANY(%(devices)s::bigint[])
ORDER BY l.at DESC LIMIT %(most)s
"""


def recent_deliveries(
    transaction: Transaction, device_ids: Sequence[int], *, campaigns: int = 50, most: int = 50
) -> list[RecentDelivery]:
    """The newest deliveries to these devices, among the newest campaigns of their apps; newest first."""
    params = {"devices": list(device_ids), "campaigns": campaigns, "most": most}
    return [
        RecentDelivery(**{**row, "outcome": Outcome(row["outcome"])}) for row in transaction.rows(_DELIVERIES, params)
    ]
