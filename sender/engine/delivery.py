"""One batch from claim to record. Reads from top to bottom: claim, prepare, issue, weigh, record."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from sender.engine.claiming import take
from sender.engine.holding import hold_back
from sender.engine.issuing import issue
from sender.engine.leases import Lease, lease_clock
from sender.engine.pacing import MARGIN, fits
from sender.engine.preparing import Plan, prepare
from sender.engine.recording import give_back, record_surely
from sender.engine.results import Results, weigh
from sender.engine.runtime import Runtime
from sender.engine.salvage import Answered, weigh_apart
from sender.engine.tallying import tally
from sender.model import Answer
from sender.policy.verdict import Terms

log = structlog.get_logger()


def send_batch(
    runtime: Runtime, batch_id: int, *, sized: Callable[[int], None] = lambda devices: None
) -> dict[str, int | str]:
    """Send one batch. Returns a small summary by outcome; a batch that is not there to be taken is a normal answer.

    `sized` is told how many devices it has, as soon as that is known.
    """
    asked = lease_clock()  # before the claim: a process that stands still right after it has lost it
    work = take(runtime, batch_id)
    if work is None:
        return {"skipped": "not open"}
    claim = work.claim
    sized(len(claim.device_ids))
    with runtime.leases.hold(claim, taken=asked) as lease, runtime.place_for(len(claim.device_ids)):
        try:
            plan = prepare(work)
            answers = issue(runtime, lease, plan)
            results = _weigh(runtime, lease, plan, answers)
        except Exception as error:
            give_back(runtime, claim, error)
            raise
        summary = record_surely(runtime, claim, results)
        if summary.get("released") and results.rest and fits(lease.limits(), len(results.untouched)):
            runtime.later.publish(
                claim.campaign.key, [claim.batch_id], seconds=results.rest + MARGIN, urgent=runtime.urgent
            )
    log.debug("batch_sent", batch=batch_id, campaign=claim.campaign.key, **summary)
    return dict(summary)


def _weigh(runtime: Runtime, lease: Lease, plan: Plan, answers: Sequence[Answer | None]) -> Results:
    """What the answers come to, with what was decided without one."""
    now = lease.now()
    results = _judge(runtime, lease, plan, answers, now)
    results.finals += plan.finals
    results.again += plan.again
    results.untouched += plan.untouched
    results.rest = plan.rest
    runtime.heed(plan.credentials, plan.targets, _without_probes(plan, answers))
    if runtime.breakers.any_shut:
        hold_back(runtime.breakers, plan, answers, results, now)
    for rule, credential in plan.holds:
        results.halt(rule, credential)
    results.moves = plan.moves
    results.tallies, results.guard = tally(plan, answers), runtime.guard
    return results


def _judge(runtime: Runtime, lease: Lease, plan: Plan, answers: Sequence[Answer | None], now: datetime) -> Results:
    """Weigh the answers. What went out is weighed whatever breaks: it must not go out again for an error of ours."""
    claim = lease.claim
    terms = Terms(
        at_least_once=claim.campaign.delivery == "at_least_once",
        expiration=claim.waits_until,
        backoff_scale=runtime.settings.backoff_scale,
    )

    def judged(some: Sequence[Answered]) -> Results:
        return weigh(
            claim, some, credentials=plan.credentials, probes=plan.probes, terms=terms, now=now, chance=random.random
        )

    answered = list(zip(plan.targets, plan.pushes, answers, strict=True))
    try:
        return judged(answered)
    except Exception:
        log.exception("weighing_broke", batch=claim.batch_id, campaign=claim.campaign.key)
        return weigh_apart(claim, answered, judged)


def _without_probes(plan: Plan, answers: Sequence[Answer | None]) -> Sequence[Answer | None]:
    """The answers that a plan's own credentials got: those to probes were heeded when they came."""
    if not plan.probes:
        return answers
    return [
        None if target.device_id in plan.probes else answer
        for target, answer in zip(plan.targets, answers, strict=True)
    ]
