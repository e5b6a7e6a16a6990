"""How large everything is, what retention does next, and whether it does what is due."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, timedelta

from sender.doctor.findings import Finding, ok, warning
from sender.policy.retention import Step
from sender.settings import Settings
from sender.store import growth
from sender.store.database import Database
from sender.store.growth import Growth, MonthPlan
from sender.store.partitions import CHANGELOG, LEDGER, month_of

#: Days after which something that is due and not done is worth a word.
LATE = 2

_DOES = {Step.REMOVE_SENT: "loses its sent rows", Step.DROP: "is dropped"}


def check_storage(settings: Settings) -> Iterator[Finding]:
    """Sizes and partitions. Reads catalogues, not rows."""
    database = Database(
        settings.require_database_url(), schema=settings.database_schema, pool_size=1, name="sender doctor"
    )
    try:
        with database.transaction() as transaction:
            found = growth.read(transaction, settings)
    finally:
        database.close()
    yield from judge(found)


def judge(found: Growth) -> Iterator[Finding]:
    """What the sizes and months come to."""
    parts = [(name, found.size(table)) for name, table in (("ledger", LEDGER), ("changelog", CHANGELOG))]
    parts += [(name, found.tables.get(name, 0)) for name in ("devices", "batches")]
    yield ok("storage", ", ".join(f"{name} {size / 2**20:,.0f} MB" for name, size in parts) + f"; {_next(found)}")
    ahead = month_of(found.today)[1]
    for table in (LEDGER, CHANGELOG):
        if not any(month.table == table and month.month == ahead for month in found.months):
            yield warning(
                "storage", f"{table} has no partition for {ahead:%Y-%m} yet", "see that a control worker runs"
            )
    for month in found.overdue:
        if month.on is not None and found.today - month.on > timedelta(days=LATE):
            why = month.held_by or "it could not have its lock so far, or no control worker runs"
            yield warning(
                "storage",
                f"{month.table} {month.month:%Y-%m} should have been cleaned on {month.on}",
                f"{why}; `sender retention` shows all of it",
            )


def _next(found: Growth) -> str:
    coming = [month for month in found.months if month.on is not None and month.held_by is None and not month.empty]
    first = min(coming, key=_when, default=None)
    if first is None:
        return "nothing is to be removed"
    return f"next {first.table} {first.month:%Y-%m} {_DOES[first.next]} on {first.on}"


def _when(month: MonthPlan) -> date:
    return month.on or date.max
