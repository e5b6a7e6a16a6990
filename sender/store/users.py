"""The application's users: an external id here, and nowhere else."""

from __future__ import annotations

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
