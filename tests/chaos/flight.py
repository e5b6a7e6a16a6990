"""How much a fault may have repeated or left unknown: what was in flight while it struck, counted in the database."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from sender.engine.runtime import SLICE
from tests.chaos.books import Moment
from tests.chaos.stack import THREADS, WORKERS

#: Devices of the largest batch: what a claim counts that could not be looked up.
LARGEST = 500


class Harm(StrEnum):
    """Whose pushes a fault may have repeated (or, at most once, left unknown)."""

    NOTHING = "nothing"
    ONE_WORKER = "what one worker had in flight"
    IN_FLIGHT = "what all workers had in flight"
    COMMITS = "what was just being announced"  # at most once: a lost connection leaves open whether it is committed
    UNANSWERED = "what the simulator itself left unanswered"  # counted by it, at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """The most that may be repeated, and that may be unknown at most once."""

    repeats: int = 0
    unknown: int = 0

    def __add__(self, other: Bound) -> Bound:
        return Bound(repeats=self.repeats + other.repeats, unknown=self.unknown + other.unknown)


def bound_of(
    before: Moment | None, after: Moment | None, *, repeats: Harm, unknown: Harm, delivered: int | None = None
) -> Bound:
    """The bound of a fault that struck between two moments.

    `delivered`: of a fault that did harm all the time in between, the pushes that APNs has seen by its end. More than
    the workers can hold at once may be hit then, but no more than what was delivered and not written down before.
    """
    claimed, intended = _claimed(before, after), _intended(before, after)
    at_once = delivered is None
    if delivered is not None and claimed is not None and before is not None:
        claimed = min(claimed, delivered - before.sent)
    return Bound(
        repeats=_most(claimed, repeats, at_once=at_once),
        unknown=min(_most(claimed, unknown, at_once=at_once), _most(intended, unknown, at_once=at_once)),
    )


def _claimed(before: Moment | None, after: Moment | None) -> int | None:
    """Devices of every claim that lived at some time between two moments, as often as it was claimed; None when the
    database could not be asked."""
    if before is None or after is None:
        return None
    devices = 0
    for batch, (epoch, _, size) in after.claims.items():
        known, held, _ = before.claims.get(batch, (0, False, size))
        devices += (epoch - known + held) * size
    return devices


def _intended(before: Moment | None, after: Moment | None) -> int | None:
    """Intents that were open while the fault struck and did not end well: they are open still, or unknown by now."""
    if before is None or after is None:
        return None
    return after.intents + after.unknown - before.unknown


def _most(devices: int | None, harm: Harm, *, at_once: bool) -> int:
    if harm in {Harm.NOTHING, Harm.UNANSWERED}:
        return 0
    capacity = THREADS * (SLICE if harm is Harm.COMMITS else LARGEST) * (1 if harm is Harm.ONE_WORKER else WORKERS)
    if devices is None:
        return capacity
    return min(devices, capacity) if at_once else devices
