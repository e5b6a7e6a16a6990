"""How large everything is, and what retention will do with each month: what `sender retention` and `doctor` tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from sender.policy.retention import Step, due_on
from sender.settings import Settings
from sender.store import partitions, retention
from sender.store.database import Transaction
from sender.store.partitions import CHANGELOG, LEDGER, Month

#: Tables that grow beside the months; `changelog_default` holds changes of months that have no partition.
TABLES = ("devices", "users", "campaigns", "batches", "retries", "changelog_default")

_SIZES = """
SELECT name, coalesce(pg_total_relation_size(to_regclass(%(schema)s || '.' || name)), 0)
FROM unnest(%(tables)s::text[]) AS name
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthPlan:
    """A month of the ledger or the changelog, and what becomes of it next."""

    table: str  # deliveries or changelog
    month: date
    bytes: int
    empty: bool
    rows: int  # PostgreSQL's estimate
    sent_removed: bool
    next: Step
    on: date | None  # None: never, as it is set now
    held_by: str | None  # why it does not happen although it is due
    copied: float | None  # the share of the month that was copied without its `sent` rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """Sizes in bytes, and the months oldest first."""

    today: date
    months: Sequence[MonthPlan]
    tables: Mapping[str, int]

    @property
    def overdue(self) -> list[MonthPlan]:
        """Months of which something is due."""
        return [month for month in self.months if month.on is not None and month.on <= self.today]

    def size(self, table: str) -> int:
        """All months of the ledger or the changelog together."""
        return sum(month.bytes for month in self.months if month.table == table)


def read(transaction: Transaction, settings: Settings) -> Growth:
    """The sizes, and what retention will do by these settings."""
    today = retention.today(transaction)
    plans = [_ledger(transaction, month, settings, today) for month in partitions.months(transaction, LEDGER)]
    plans += [_changelog(month, settings) for month in partitions.months(transaction, CHANGELOG)]
    values = {"schema": transaction.sql("{s}"), "tables": list(TABLES)}
    return Growth(today=today, months=plans, tables=dict(transaction.execute(_SIZES, values).fetchall()))


def _ledger(transaction: Transaction, month: Month, settings: Settings, today: date) -> MonthPlan:
    removed = month.empty or month.remark == retention.SENT_REMOVED
    step, days = (Step.DROP, settings.retain_errors) if removed else (Step.REMOVE_SENT, settings.retain_sent)
    on = None if days is None else due_on(month.after, days)
    due = on is not None and on <= today
    copy = retention.copy_of(transaction, month) if due else None
    return MonthPlan(
        table=month.parent,
        month=month.first,
        bytes=month.bytes,
        empty=month.empty,
        rows=month.rows,
        sent_removed=month.remark == retention.SENT_REMOVED,
        next=Step.KEEP if on is None else step,
        on=on,
        held_by=_held_by(transaction, month, step) if due else None,
        copied=None if copy is None else copy.pages / max(copy.of, 1),
    )


def _held_by(transaction: Transaction, month: Month, step: Step) -> str | None:
    if key := retention.unfinished(transaction, month):
        return f"campaign {key!r} of that month has not finished"
    if step is Step.DROP and (found := retention.references(transaction, month)):
        who, whom = next(iter(found.values()))
        return f"campaign {who!r}, which has not finished, leaves out whom {whom!r} was sent to"
    return None


def _changelog(month: Month, settings: Settings) -> MonthPlan:
    on = None if settings.retain_changelog is None else due_on(month.after, settings.retain_changelog)
    return MonthPlan(
        table=month.parent,
        month=month.first,
        bytes=month.bytes,
        empty=month.empty,
        rows=month.rows,
        sent_removed=False,
        next=Step.KEEP if on is None else Step.DROP,
        on=on,
        held_by=None,
        copied=None,
    )
