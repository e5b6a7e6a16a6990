"""How long a month is kept: what is done with it on a day, and from which day on it will be.

A month is judged by its last day, so that nothing in it is ever removed early.
"""

from __future__ import annotations

from datetime import date, timedelta
from enum import StrEnum


class Step(StrEnum):
    """What retention does with a month."""

    KEEP = "keep"
    REMOVE_SENT = "remove_sent"  # the ledger's: what did not succeed stays
    DROP = "drop"


def ledger_step(after: date, today: date, *, sent: int | None, errors: int | None) -> Step:
    """The step for a month of the ledger that ends before `after`; days to keep are None for ever."""
    if _is_over(after, today, errors):
        return Step.DROP
    return Step.REMOVE_SENT if _is_over(after, today, sent) else Step.KEEP


def changelog_step(after: date, today: date, *, days: int | None) -> Step:
    """The step for a month of the changelog that ends before `after`."""
    return Step.DROP if _is_over(after, today, days) else Step.KEEP


def due_on(after: date, days: int) -> date:
    """The first day on which every day of a month that ends before `after` is older than so many days."""
    return after + timedelta(days=days)


def _is_over(after: date, today: date, days: int | None) -> bool:
    return days is not None and today >= due_on(after, days)
