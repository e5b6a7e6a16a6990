"""What a check gives, and what the checks look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sender.store.breakers import Breaker
from sender.store.health import AppHealth, WorkerHealth


class Status(StrEnum):
    """How a check came out."""

    OK = "ok"
    WARNING = "warning"  # works, but somebody should know
    FAILED = "failed"  # something does not work: exit 1
    SKIPPED = "skipped"  # could not be looked at, because something before it failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report."""

    check: str
    status: Status
    message: str
    advice: str = ""  # what to do; empty when there is nothing to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the database says of the installation, at one moment."""

    taken_at: datetime  # by the clock of this machine, aware
    ahead_by: float  # seconds by which that clock runs before the database's
    workers: Sequence[WorkerHealth]
    pulses: Mapping[str, float]  # periodic job -> seconds since it ran
    apps: Sequence[AppHealth]
    breakers: Sequence[Breaker]  # of credentials that rest or are slowed down


def ok(check: str, message: str) -> Finding:
    """Nothing to do."""
    return Finding(check=check, status=Status.OK, message=message)


def warning(check: str, message: str, advice: str) -> Finding:
    """Works, but somebody should know."""
    return Finding(check=check, status=Status.WARNING, message=message, advice=advice)


def failed(check: str, message: str, advice: str) -> Finding:
    """Does not work."""
    return Finding(check=check, status=Status.FAILED, message=message, advice=advice)


def skipped(check: str, message: str) -> Finding:
    """Could not be looked at."""
    return Finding(check=check, status=Status.SKIPPED, message=message)
