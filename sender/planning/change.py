"""What may be changed of a campaign after it was written: its pace, its deadline, and how long its pushes live."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Final, Literal

from sender.errors import ConflictError, TransitionError
from sender.planning.plan import (
    InvalidCampaignError,
    Rate,
    check_duration,
    check_moment,
    check_over,
    check_rate,
)
from sender.policy.states import CAMPAIGN_MOVES
from sender.store import campaign_changes, campaigns, reports
from sender.store.campaigns import CampaignRow
from sender.store.database import Transaction


class Kept(Enum):
    """Stands for what stays as it is, where None has a meaning of its own."""

    KEPT = "kept"


KEPT: Final = Kept.KEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that was checked."""

    rate: float | Literal[Kept.KEPT] | None = KEPT
    over: float | None = None  # seconds; None: not given
    finish_by: datetime | Literal[Kept.KEPT] | None = KEPT
    expires_in: float | None = None  # seconds from the start; None: not given


def make_change(
    *,
    rate: Rate | Literal[Kept.KEPT],
    over: timedelta | float | None,
    finish_by: datetime | Literal[Kept.KEPT] | None,
    expires_in: timedelta | float | None,
) -> Change:
    """Check what needs no database. Raises `InvalidCampaignError` with all faults."""
    spread, faults = check_over(over)
    lasting, more = check_duration("expires_in", expires_in)
    faults += more
    if rate is not KEPT:
        faults += check_rate(rate)
        if over is not None:
            faults.append("rate and over exclude each other: over makes a rate of what is left")
    if finish_by is not KEPT:
        faults += check_moment("finish_by", finish_by)
    if rate is KEPT and over is None and finish_by is KEPT and expires_in is None:
        faults.append("nothing to change: give a rate, over, finish_by or expires_in")
    if faults:
        raise InvalidCampaignError("campaign", faults)
    return Change(rate=rate, over=spread, finish_by=finish_by, expires_in=lasting)  # type: ignore[arg-type]


def apply_change(transaction: Transaction, key: str, change: Change) -> CampaignRow:
    """Write a change; workers notice within a second.

    Raises `NotFoundError`; `TransitionError` when the campaign has ended; `ConflictError` when its pushes would expire
    earlier than those that went out say.
    """
    report = reports.read(transaction, key)
    left = report.pending + report.in_flight + report.retrying
    moved = campaign_changes.change(
        transaction,
        key,
        rate=() if change.rate is KEPT else (change.rate,),
        over=change.over,
        left=None if report.started_at is None else left,
        finish_by=() if change.finish_by is KEPT else (change.finish_by,),
        expires_in=change.expires_in,
    )
    row = campaigns.load(transaction, key)
    if moved:
        return row
    if row.finished_at is not None or not CAMPAIGN_MOVES[row.state]:
        raise TransitionError(f"campaign {key!r} is {row.state}: nothing of it can be changed any more")
    told = "are never stored" if row.expiration is None else f"expire at {row.expiration:%Y-%m-%d %H:%M:%S %Z}"
    raise ConflictError(
        f"campaign {key!r} has started, and its pushes {told}: that can be put off, not brought forward, since what "
        "went out says so; to send nothing more, cancel it"
    )
