"""Who is there: which processes have beaten, and whether the periodic jobs have run, since a moment."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime

from sender.store.database import Transaction


def now(transaction: Transaction) -> datetime:
    """The database's clock."""
    row = transaction.execute("SELECT clock_timestamp()").fetchone()
    moment: datetime = row[0] if row else datetime.now(UTC)
    return moment


def beaten_since(transaction: Transaction, moment: datetime, pids: Collection[int]) -> set[int]:
    """Which of these processes have written a heartbeat since the moment."""
    found = transaction.execute(
        "SELECT pid FROM {s}.workers WHERE seen_at >= %s AND pid = ANY(%s)", (moment, list(pids))
    )
    return {pid for (pid,) in found}


def pulsed_since(transaction: Transaction, moment: datetime, name: str) -> bool:
    """Whether a periodic job has run since the moment."""
    return bool(transaction.execute("SELECT 1 FROM {s}.pulses WHERE name = %s AND at >= %s", (name, moment)).fetchone())
