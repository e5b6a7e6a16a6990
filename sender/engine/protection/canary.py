"""The canary's steps: its sample is sent, weighed, and the rest goes on, waits or stops. Two sweeps at once do no
harm: every step is a compare-and-set."""

from __future__ import annotations

import structlog

from sender.engine.mishaps import apart
from sender.policy.canary import is_ready, weigh
from sender.policy.states import CampaignState, CanaryState
from sender.store import canaries
from sender.store.canaries import OpenCanary
from sender.store.database import Database, Transaction

log = structlog.get_logger()


def advance(database: Database) -> None:
    """Move every open canary on as far as it can go now. One short query when there is none."""
    with database.transaction() as transaction:
        found = canaries.open_canaries(transaction)
    for canary in found:
        with apart("canary_failed", campaign=canary.key):
            with database.transaction() as transaction:
                moved = _advance(transaction, canary)
            if moved:
                log.info("canary_moved", campaign=canary.key, state=moved[0].value, result=moved[1])


def _advance(transaction: Transaction, canary: OpenCanary) -> tuple[CanaryState, str] | None:
    """Make the step that is due; (its state, the figures in words), or None."""
    if canary.canary_state is not CanaryState.SENDING:
        return _go_on(transaction, canary)
    if canary.state is CampaignState.PAUSED:
        stopped = canary.tripped and canaries.note_guard(transaction, canary)
        return (CanaryState.STOPPED, "guard") if stopped else None
    if not canary.cut_finished or canaries.is_busy(transaction, canary):
        return None
    return _weigh(transaction, canary)


def _go_on(transaction: Transaction, canary: OpenCanary) -> tuple[CanaryState, str] | None:
    """The rest of a canary that a person resumed: once its sample is cut whole, which a guard may have prevented."""
    if canary.state is CampaignState.RUNNING and canary.cut_finished and canaries.let_pass(transaction, canary):
        return CanaryState.PASSED, "resumed"
    return None


def _weigh(transaction: Transaction, canary: OpenCanary) -> tuple[CanaryState, str] | None:
    sample = canaries.sample(transaction, canary)
    if not is_ready(sample):
        return None
    result = weigh(sample, canary.canary.thresholds)
    if not result.passed:
        moved, state = canaries.stop(transaction, canary, result.words), CanaryState.STOPPED
    elif canary.canary.hold and not canary.whole:
        moved, state = canaries.wait(transaction, canary, result.words), CanaryState.WAITING
    else:
        moved, state = canaries.let_pass(transaction, canary, result.words), CanaryState.PASSED
    return (state, result.words) if moved else None
