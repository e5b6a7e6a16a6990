"""Retention, step by step: each step is one bounded transaction, everything that must be remembered between two of them
is in the database, and a step that somebody is in the way of is left for a later round."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from sender.policy.retention import Step, changelog_step, ledger_step
from sender.settings import Settings
from sender.store import folding, partitions, quarantine, retention
from sender.store.database import Database, Transaction
from sender.store.outages import BUSY
from sender.store.partitions import CHANGELOG, LEDGER, Month

log = structlog.get_logger()

#: Pages of a month (8 KiB each) that are looked at in one step, and rows deleted in one.
COPY_PAGES = 4096
DELETE_BATCHES = 500
DELETE_CHANGES = 5000

#: Campaigns that are folded up in one transaction.
MOST_CAMPAIGNS = 20

#: Seconds after its end for which a campaign's own limit is kept.
LIMIT_KEPT = 3600.0

P = ParamSpec("P")
T = TypeVar("T")


class _Taken(Enum):
    """What a step with a month came to."""

    NOTHING = auto()  # there is nothing to do, or something must end first
    MORE = auto()
    SENT_REMOVED = auto()
    DROPPED = auto()


def retain(database: Database, settings: Settings) -> Iterator[None]:
    """Do whatever is due, a step between two `yield`s; may be left at any of them, and goes on there another time."""
    yield from _retain_ledger(database, settings)
    yield from _retain_changelog(database, settings)
    yield from _fold(database, settings)
    yield from _confirm_aged(database, settings)


def _confirm_aged(database: Database, settings: Settings) -> Iterator[None]:
    while confirmed := _try(database, quarantine.confirm_aged, days=settings.quarantine_days):
        log.info("quarantine_aged", confirmed=confirmed)
        yield


def _retain_ledger(database: Database, settings: Settings) -> Iterator[None]:
    with database.transaction() as transaction:
        day, months = retention.today(transaction), partitions.months(transaction, LEDGER)
    for month in months:
        step = ledger_step(month.after, day, sent=settings.retain_sent, errors=settings.retain_errors)
        taken: _Taken | None = _Taken.MORE
        while step is not Step.KEEP and taken is _Taken.MORE:
            taken = _try(database, _ledger_step, month, step)
            _tell(month, taken)
            yield


def _ledger_step(transaction: Transaction, month: Month, step: Step) -> _Taken:
    """Take the next step with a month of the ledger."""
    if not retention.is_there(transaction, month) or retention.unfinished(transaction, month) is not None:
        return _Taken.NOTHING
    referred = set(retention.references(transaction, month))
    if step is Step.DROP and not referred:
        return _Taken.DROPPED if retention.drop(transaction, month) else _Taken.MORE
    if not retention.needs_removal(transaction, month, referred):
        return _Taken.NOTHING
    copy = retention.copy_of(transaction, month)
    if copy is None or not referred <= set(copy.kept):
        retention.begin_copy(transaction, month, referred)
    elif not copy.complete:
        retention.copy_some(transaction, month, copy, pages=COPY_PAGES)
    elif retention.swap(transaction, month, copy):
        return _Taken.SENT_REMOVED
    return _Taken.MORE


def _retain_changelog(database: Database, settings: Settings) -> Iterator[None]:
    days = settings.retain_changelog
    if days is None:
        return
    with database.transaction() as transaction:
        day, months = retention.today(transaction), partitions.months(transaction, CHANGELOG)
    for month in months:
        if changelog_step(month.after, day, days=days) is Step.DROP:
            _tell(month, _Taken.DROPPED if _try(database, retention.drop, month) else None)
            yield
    while _try(database, retention.delete_changes, days, most=DELETE_CHANGES) == DELETE_CHANGES:
        yield


def _fold(database: Database, settings: Settings) -> Iterator[None]:
    _try(database, folding.forget_limits, seconds=LIMIT_KEPT)
    if settings.retain_sent is None:
        return
    last = 0
    while old := _foldable(database, days=settings.retain_sent, after=last):
        for key in _try(database, folding.fold, old) or ():
            log.info("batches_folded", campaign=key)
        yield
        while _try(database, folding.delete_batches, old, most=DELETE_BATCHES) == DELETE_BATCHES:
            yield
        last = old[-1]


def _foldable(database: Database, *, days: int, after: int) -> list[int]:
    with database.transaction() as transaction:
        return folding.foldable(transaction, days=days, after=after, most=MOST_CAMPAIGNS)


def _try(
    database: Database, step: Callable[Concatenate[Transaction, P], T], *arguments: P.args, **named: P.kwargs
) -> T | None:
    """Take one step alone; None when somebody else is at one, or holds what it needs: a later round tries again."""
    try:
        with database.transaction() as transaction:
            return step(transaction, *arguments, **named) if retention.alone(transaction) else None
    except BUSY as error:
        log.info("retention_deferred", step=getattr(step, "__name__", ""), error=type(error).__name__)
        return None


def _tell(month: Month, taken: _Taken | None) -> None:
    if taken is _Taken.SENT_REMOVED:
        log.info("sent_rows_removed", partition=month.name, bytes=month.bytes)
    elif taken is _Taken.DROPPED:
        log.info("partition_dropped", partition=month.name, bytes=month.bytes)
