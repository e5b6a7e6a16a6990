"""The result handler's hand: what a batch comes to is written as ledger rows, token states, changelog rows, retries and
halts, in one transaction. It can be run again after any failure: everything it writes is idempotent."""

from __future__ import annotations

import random
import time

import structlog

from sender.engine.results import Results
from sender.engine.runtime import Runtime
from sender.errors import DatabaseUnavailableError
from sender.policy.outcomes import Halt
from sender.store import apps, batches, devices, ledger, lifecycle, sending
from sender.store.batches import Claim
from sender.store.database import TRANSIENT, Transaction

log = structlog.get_logger()

#: Seconds for which a credential rests after TooManyProviderTokenUpdates.
PROVIDER_TOKEN_HOLD = 20 * 60.0

#: Seconds before a batch of which nothing could be issued is offered again: doubling per setback, up to a minute.
SETBACK_FIRST, SETBACK_LONGEST = 1.0, 60.0


def record_surely(runtime: Runtime, claim: Claim, results: Results) -> dict[str, int]:
    """Write the results, for as long as it takes: answers are facts that must not be lost with the database away."""
    pause = 0.1
    while True:
        try:
            with runtime.database.transaction() as transaction:
                return record(transaction, claim, results, scale=runtime.settings.backoff_scale)
        except (*TRANSIENT, DatabaseUnavailableError) as error:
            log.warning("record_delayed", batch=claim.batch_id, error=type(error).__name__, seconds=pause)
            time.sleep(pause * (0.5 + random.random()))  # noqa: S311
            pause = min(pause * 2, 5.0)


def record(transaction: Transaction, claim: Claim, results: Results, *, scale: float) -> dict[str, int]:
    """Write a batch's results; returns what was counted, by outcome, for the task's own result.

    A fenced claim (its lease ended, somebody else has the batch) may still say what APNs accepted and rejected, since
    those are facts; it may not release, postpone or finish anything.
    """
    ours = batches.fence(transaction, claim)
    retried = claim.kind == "retry" or claim.epoch > 1 or not ours
    counts = ledger.record(transaction, claim, results.sent, results.finals, retried=retried)
    _record_tokens(transaction, claim, results)
    _record_halts(transaction, claim, results, scale=scale)
    if not ours:
        log.warning("claim_fenced", batch=claim.batch_id, campaign=claim.campaign.key, epoch=claim.epoch)
        return counts | {"fenced": 1}
    ledger.postpone(transaction, claim, results.again)
    if claim.kind == "retry":
        ledger.end_settled_retries(transaction, claim)
    if results.again:
        counts["retrying"] = len(results.again)
    if results.untouched:
        issued = bool(results.sent or results.finals or results.again)
        setbacks = 0 if issued or results.rest else claim.setbacks + 1
        setback = 0.0 if not setbacks else min(SETBACK_FIRST * 2.0 ** min(claim.setbacks, 10), SETBACK_LONGEST) * scale
        delay = max(setback, results.rest)
        batches.release(transaction, claim, delay=delay, setbacks=min(setbacks, 100))
        counts["released"] = len(results.untouched)
    else:
        batches.finish(transaction, claim)
    return counts


def _record_tokens(transaction: Transaction, claim: Claim, results: Results) -> None:
    campaign_id = claim.campaign.id
    if results.gone:
        devices.invalidate(transaction, results.gone, campaign_id)
    if results.suspects:
        devices.quarantine(transaction, results.suspects, campaign_id)
    if results.throttled:
        devices.blocklist(transaction, results.throttled, campaign_id)
    if results.cleared:
        devices.clear_blocklist(transaction, results.cleared, campaign_id)


def _record_halts(transaction: Transaction, claim: Claim, results: Results, *, scale: float) -> None:
    campaign = claim.campaign
    for (halt, reason), (rule, credential) in results.halts.items():
        why = f"{reason}: {rule.meaning} {rule.advice}"
        match halt:
            case Halt.HOLD_CREDENTIAL:
                sending.hold(transaction, credential.identity, seconds=PROVIDER_TOKEN_HOLD * scale, cause=why)
            case Halt.PAUSE_APP:
                apps.pause_app(transaction, campaign.app_id, why)
            case Halt.STOP_CAMPAIGN:
                lifecycle.fail(transaction, campaign.id, why)
            case Halt.NONE:
                continue
        log.error("halt_ordered", halt=halt.value, campaign=campaign.key, app=campaign.bundle_id, reason=reason)


def give_back(runtime: Runtime, claim: Claim) -> None:
    """After an error of our own: the batch is offered again later, and the error is raised for all to see."""
    try:
        with runtime.database.transaction() as transaction:
            delay = min(2.0 ** min(claim.setbacks, 6), 60.0)
            batches.release(transaction, claim, delay=delay, setbacks=min(claim.setbacks + 1, 100))
    except (*TRANSIENT, DatabaseUnavailableError) as error:
        log.warning("release_failed", batch=claim.batch_id, error=type(error).__name__)
