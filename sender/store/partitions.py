"""Partitions of the ledger (by a campaign's start) and of the changelog (by time), a month each.

They are created beside their parent and then attached: CREATE TABLE … PARTITION OF would wait behind, and then block,
every open insert.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sender.store.database import Transaction

LEDGER, CHANGELOG = "deliveries", "changelog"

#: How long a change of partitions waits for locks, and so how long whoever comes behind it can wait for it.
ATTACH_WITHIN = "1s"

_NAME = re.compile(r"(?P<parent>[a-z]+)_(?P<year>\d{4})_(?P<month>\d{2})")

_EXISTS = "SELECT to_regclass(%s) IS NOT NULL"
_IN_DEFAULT = "SELECT 1 FROM {s}.changelog_default WHERE at >= %s AND at < %s LIMIT 1"
_LOCK = "SELECT pg_advisory_xact_lock(hashtext(%s))"
_MONTHS = """
SELECT c.relname AS name, coalesce(pg_total_relation_size(c.oid), 0) AS bytes,
       coalesce(pg_relation_size(c.oid), 0) = 0 AS empty, greatest(c.reltuples, 0)::bigint AS rows,
       obj_description(c.oid, 'pg_class') AS remark
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = to_regclass(%s) ORDER BY c.relname
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Month:
    """A partition of the ledger or the changelog: the days from `first` up to, and without, `after`."""

    parent: str  # LEDGER or CHANGELOG
    first: date
    after: date
    bytes: int  # with its indexes
    empty: bool
    rows: int  # PostgreSQL's estimate
    remark: str | None  # the table's comment: what retention notes of it

    @property
    def name(self) -> str:
        return f"{self.parent}_{self.first:%Y_%m}"


def ensure_ledger(transaction: Transaction, started_on: date) -> None:
    """Have the ledger's partition for campaigns that start on this day. Does nothing when it is there."""
    first, after = month_of(started_on)
    _ensure(transaction, LEDGER, first, str(first), str(after))


def ensure_changelog(transaction: Transaction, day: date) -> None:
    """Have the changelog's partition for this day. Does nothing when it is there."""
    first, after = month_of(day)
    low, high = f"{first} 00:00:00+00", f"{after} 00:00:00+00"
    if transaction.execute(_IN_DEFAULT, (low, high)).fetchone() is None:  # else the month stays where it is
        _ensure(transaction, CHANGELOG, first, low, high)


def ensure_ahead(transaction: Transaction, months: int = 2) -> None:
    """Have the partitions of this month and the next ones, so that no insert ever waits for one."""
    day = today()
    for _ in range(months + 1):
        ensure_ledger(transaction, day)
        ensure_changelog(transaction, day)
        day = month_of(day)[1]


def months(transaction: Transaction, parent: str) -> list[Month]:
    """The attached months of the ledger or the changelog, oldest first."""
    found = []
    for row in transaction.rows(_MONTHS, (transaction.sql(f"{{s}}.{parent}"),)):
        match = _NAME.fullmatch(row.pop("name"))
        if match is not None:  # else the changelog's default
            first, after = month_of(date(int(match["year"]), int(match["month"]), 1))
            found.append(Month(parent=parent, first=first, after=after, **row))
    return found


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
    transaction.wait_for_locks(ATTACH_WITHIN)
    transaction.execute(f"CREATE TABLE {{s}}.{name} (LIKE {{s}}.{parent} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)")
    transaction.execute(
        f"ALTER TABLE {{s}}.{parent} ATTACH PARTITION {{s}}.{name} FOR VALUES FROM ('{low}') TO ('{high}')"
    )


def _there(transaction: Transaction, name: str) -> bool:
    row = transaction.execute(_EXISTS, (transaction.sql(f"{{s}}.{name}"),)).fetchone()
    return bool(row and row[0])
