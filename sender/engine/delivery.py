"""One batch from claim to record. Reads from top to bottom: claim, load, prepare, issue, weigh, record."""

from __future__ import annotations

import random
from collections.abc import Sequence

import structlog

from sender.engine.issuing import issue
from sender.engine.leases import Lease, lease_clock
from sender.engine.preparing import Plan, prepare, wait_for_holds
from sender.engine.recording import give_back, record_surely
from sender.engine.results import Results, weigh
from sender.engine.runtime import Runtime
from sender.model import Answer
from sender.policy.states import Outcome
from sender.policy.verdict import Final, Terms
from sender.store import batches, sending
from sender.store.batches import Claim

log = structlog.get_logger()


def send_batch(runtime: Runtime, batch_id: int) -> dict[str, int | str]:
    """Send one batch. Returns a small summary by outcome; a batch that is not there to be taken is a normal answer."""
    asked = lease_clock()  # before the claim: a process that stands still right after it has lost it
    taken = _claim(runtime, batch_id)
    if taken is None:
        return {"skipped": "not open"}
    claim, plan = taken
    with runtime.leases.hold(claim, taken=asked) as lease:
        try:
            results = _results(runtime, lease, plan, issue(runtime, lease, plan))
        except Exception:
            give_back(runtime, claim)
            raise
        summary = record_surely(runtime, claim, results)
    log.debug("batch_sent", batch=batch_id, campaign=claim.campaign.key, **summary)
    return dict(summary)


def _claim(runtime: Runtime, batch_id: int) -> tuple[Claim, Plan] | None:
    with runtime.database.transaction() as transaction:
        claim = batches.claim(transaction, batch_id)
        if claim is None:
            return None
        targets = batches.targets(transaction, claim)
        settled = batches.settled(transaction, claim)
        credentials = sending.credentials(transaction, claim.campaign.app_id)
        holds = sending.holds(transaction, [ref.identity for ref in credentials.values()])
    held = {environment for environment, ref in credentials.items() if ref.identity in holds}
    plan = prepare(claim, targets, credentials, held)
    if claim.epoch > 1 or len(targets) + len(settled) < len(claim.device_ids):
        missing = set(claim.device_ids) - settled - {target.device_id for target in targets}
        plan.finals += [Final(device_id=id, outcome=Outcome.SKIPPED, reason="Moved", attempts=0) for id in missing]
    wait_for_holds(claim, plan, max(holds.values(), default=claim.loaded_at))
    return claim, plan


def _results(runtime: Runtime, lease: Lease, plan: Plan, answers: Sequence[Answer | None]) -> Results:
    claim = lease.claim
    terms = Terms(
        at_least_once=claim.campaign.delivery == "at_least_once",
        expiration=claim.campaign.expiration,
        backoff_scale=runtime.settings.backoff_scale,
    )
    results = weigh(
        claim,
        zip(plan.targets, plan.pushes, answers, strict=True),
        credentials=plan.credentials,
        terms=terms,
        now=lease.now(),
        chance=random.random,
    )
    results.finals += plan.finals
    results.again += plan.again
    results.untouched += plan.untouched
    results.rest = plan.rest
    return results
