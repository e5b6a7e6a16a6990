"""Partitions of the ledger (by a campaign's start) and of the changelog (by time), a month each.

They are created beside their parent and then attached: CREATE TABLE … PARTITION OF would wait behind, and then block,
every open insert.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from sender.store.database import Transaction

_EXISTS = "SELECT to_regclass(%s) IS NOT NULL"
_IN_DEFAULT = "SELECT 1 FROM {s}.changelog_default WHERE at >= %s AND at < %s LIMIT 1"
_LOCK = "SELECT pg_advisory_xact_lock(hashtext(%s))"


def ensure_ledger(transaction: Transaction, started_on: date) -> None:
    """Have the ledger's partition for campaigns that start on this day. Does nothing when it is there."""
    first, after = month_of(started_on)
    _ensure(transaction, "deliveries", first, str(first), str(after))


def ensure_changelog(transaction: Transaction, day: date) -> None:
    """Have the changelog's partition for this day. Does nothing when it is there."""
    first, after = month_of(day)
    low, high = f"{first} 00:00:00+00", f"{after} 00:00:00+00"
    if transaction.execute(_IN_DEFAULT, (low, high)).fetchone() is None:  # else the month stays where it is
        _ensure(transaction, "changelog", first, low, high)


def ensure_ahead(transaction: Transaction, months: int = 2) -> None:
    """Have the partitions of this month and the next ones, so that no insert ever waits for one."""
    day = today()
    for _ in range(months + 1):
        ensure_ledger(transaction, day)
        ensure_changelog(transaction, day)
        day = month_of(day)[1]


def month_of(day: date) -> tuple[date, date]:
    """The first day of a day's month, and the first day of the next one."""
    first = day.replace(day=1)
    return first, (first + timedelta(days=32)).replace(day=1)


def today() -> date:
    """Today in UTC: partitions are cut at UTC midnights."""
    return datetime.now(UTC).date()


def _ensure(transaction: Transaction, parent: str, first: date, low: str, high: str) -> None:
    name = f"{parent}_{first:%Y_%m}"
    if _there(transaction, name):
        return
    transaction.execute(_LOCK, (name,))
    if _there(transaction, name):
        return
    transaction.execute("SELECT set_config('lock_timeout', '5s', true)")
    transaction.execute(f"CREATE TABLE {{s}}.{name} (LIKE {{s}}.{parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
    transaction.execute(
        f"ALTER TABLE {{s}}.{parent} ATTACH PARTITION {{s}}.{name} FOR VALUES FROM ('{low}') TO ('{high}')"
    )


def _there(transaction: Transaction, name: str) -> bool:
    row = transaction.execute(_EXISTS, (transaction.sql(f"{{s}}.{name}"),)).fetchone()
    return bool(row and row[0])
