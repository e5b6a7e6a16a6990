"""One batch from claim to record. Reads from top to bottom: claim, load, prepare, issue, weigh, record."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from sender.apns_ids import delivery_apns_ids
from sender.errors import DatabaseUnavailableError
from sender.leases import Lease, lease_clock
from sender.model import ACCEPTED, Accepted, Answer, CredentialRef, NotProcessed, Push
from sender.pacing import take_grant
from sender.policy.outcomes import DeliveryStep, Halt, rule_for
from sender.policy.states import DeviceState, Outcome
from sender.policy.verdict import Again, Final, Terms
from sender.results import Results, record, weigh
from sender.runtime import Runtime
from sender.store import batches, sending
from sender.store.batches import Claim, Target
from sender.store.database import TRANSIENT
from sender.store.segments import NEEDS_AUTHORIZATION

log = structlog.get_logger()

#: How often a push that was provably not processed is issued again at once, before the queue has it back.
RESENDS = 2

_SKIPPED: dict[str, str] = {
    DeviceState.INVALID.value: "Invalid",
    DeviceState.QUARANTINED.value: "Quarantined",
    DeviceState.OPTED_OUT.value: "OptedOut",
}


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a claim comes to before anything is sent: pushes with their targets, and what is decided without one."""

    targets: list[Target] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)  # one for each of the targets
    credentials: Mapping[str, CredentialRef] = field(default_factory=dict)  # by environment
    finals: list[Final] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    untouched: list[int] = field(default_factory=list)
    held: list[Target] = field(default_factory=list)  # their credential rests
    rest: float = 0.0  # seconds before what is not issued may be tried again


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
            _give_back(runtime, claim)
            raise
        summary = _record(runtime, claim, results)
    log.debug("batch_sent", batch=batch_id, campaign=claim.campaign.key, **summary)
    return dict(summary)


# --- claim, load, prepare -------------------------------------------------------------------------------------------


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
    _wait_for_holds(claim, plan, max(holds.values(), default=claim.loaded_at))
    return claim, plan


def prepare(
    claim: Claim, targets: Iterable[Target], credentials: Mapping[str, CredentialRef], held: Collection[str]
) -> Plan:
    """Make the pushes of a claim. A device can only be removed here, as skipped with a cause, or wait its rest out."""
    campaign, plan = claim.campaign, Plan(credentials=credentials)
    expired = campaign.expiration is not None and campaign.expiration <= claim.loaded_at
    apns_id = delivery_apns_ids(campaign.id)
    open_to = set(credentials) - set(held)
    for target in targets:
        _, token, environment, state, authorization, *_ = target
        plain = state == "active" and environment in open_to and not expired and authorization != "denied"
        if plain or not _keep_back(plan, claim, target, held, expired=expired):
            plan.targets.append(target)
            plan.pushes.append(Push(token, apns_id(target.device_id), campaign.payload, campaign.headers))
    return plan


def _keep_back(plan: Plan, claim: Claim, target: Target, held: Collection[str], *, expired: bool) -> bool:
    """Note what becomes of a device that is not sent to now; False when it is, after all."""
    headers = claim.campaign.headers
    if expired:
        plan.finals.append(_removed(target, Outcome.EXPIRED, "Expired"))
    elif target.state in _SKIPPED:
        plan.finals.append(_removed(target, Outcome.SKIPPED, _SKIPPED[target.state]))
    elif target.environment not in plan.credentials:
        plan.finals.append(_removed(target, Outcome.SKIPPED, "NoCredential"))
    elif headers.push_type in NEEDS_AUTHORIZATION and target.authorization == "denied":
        plan.finals.append(_removed(target, Outcome.SKIPPED, "NotReachable"))
    elif target.blocklisted_until is not None and target.blocklisted_until > claim.loaded_at:
        _wait(plan, target, target.blocklisted_until, claim.campaign.expiration, "TooManyRequests")
    elif target.environment in held:
        plan.held.append(target)
    else:
        return False
    return True


def _removed(target: Target, outcome: Outcome, reason: str) -> Final:
    return Final(device_id=target.device_id, outcome=outcome, reason=reason, attempts=target.attempts)


def _wait(plan: Plan, target: Target, until: datetime, expiration: datetime | None, reason: str) -> None:
    if expiration is None or until >= expiration:
        plan.finals.append(_removed(target, Outcome.EXPIRED, reason))
    else:
        plan.again.append(Again(device_id=target.device_id, due_at=until, attempts=target.attempts, reason=reason))


def _wait_for_holds(claim: Claim, plan: Plan, until: datetime) -> None:
    """What must wait for a credential goes back with the whole batch, or, when the rest of it can go, to the retries:
    the environment that does not rest must not wait for the other."""
    if plan.pushes:
        for target in plan.held:
            _wait(plan, target, until, claim.campaign.expiration, "CredentialHeld")
    elif plan.held:
        plan.untouched += [target.device_id for target in plan.held]
        plan.rest = max(0.0, (until - claim.loaded_at).total_seconds())


# --- issue ----------------------------------------------------------------------------------------------------------


def issue(runtime: Runtime, lease: Lease, plan: Plan) -> list[Answer | None]:
    """Send the pushes of a plan under its limits; None for those that were not issued before a stop."""
    answers: list[Answer | None] = [None] * len(plan.pushes)
    _issue_round(runtime, lease, plan, range(len(plan.pushes)), answers)
    if answers.count(ACCEPTED) == len(answers):
        return answers
    for _ in range(RESENDS):
        refused = [at for at, answer in enumerate(answers) if _may_resend(answer)]
        if not refused or lease.stopped.is_set():
            break
        _issue_round(runtime, lease, plan, refused, answers)
    _try_on_fresh_connection(runtime, lease, plan, answers)
    return answers


def _issue_round(
    runtime: Runtime, lease: Lease, plan: Plan, places: Sequence[int], answers: list[Answer | None]
) -> None:
    waiting = []
    left = places
    try:
        while left:
            leave = take_grant(runtime.database, lease.limits, len(left), lease.stopped)
            if not leave.pushes:
                plan.rest = leave.wait
                break
            part, left = left[: leave.pushes], left[leave.pushes :]
            for environment, group in _by_environment(plan, part):
                pushes = [plan.pushes[at] for at in group]
                waiting.append((group, runtime.issue(plan.credentials[environment], pushes, lease)))
    except Exception:  # what is on its way has answers: they are recorded before anything else
        lease.stopped.set()
        log.exception("issuing_broke", batch=lease.claim.batch_id, campaign=lease.claim.campaign.key)
    for group, future in waiting:
        for at, answer in zip(group, future.result(), strict=True):
            answers[at] = answer


def _by_environment(plan: Plan, places: Sequence[int]) -> list[tuple[str, Sequence[int]]]:
    groups: dict[str, list[int]] = {}
    if len(plan.credentials) == 1:
        return [(environment, places) for environment in plan.credentials]
    for at in places:
        groups.setdefault(plan.targets[at].environment, []).append(at)
    return list(groups.items())


def _may_resend(answer: Answer | None) -> bool:
    return isinstance(answer, NotProcessed) and not answer.cause.startswith("connect")


def _try_on_fresh_connection(runtime: Runtime, lease: Lease, plan: Plan, answers: list[Answer | None]) -> None:
    """A refused credential gets one retry on a new connection, with a single push, before it counts. Where that retry
    cannot be had the refusals do not count: what they refused goes back untouched."""
    doubted = [at for at, answer in enumerate(answers) if answer is not None and _doubts_connection(answer)]
    if not doubted:
        return
    refusals = [answers[at] for at in doubted]
    for at in doubted:
        answers[at] = None
    if lease.stopped.is_set() or not _renew(runtime, plan, doubted):
        return
    _issue_round(runtime, lease, plan, doubted[:1], answers)
    if isinstance(answers[doubted[0]], Accepted):
        _issue_round(runtime, lease, plan, doubted[1:], answers)
    elif answers[doubted[0]] is not None:
        for at, refusal in zip(doubted[1:], refusals[1:], strict=True):
            answers[at] = refusal


def _renew(runtime: Runtime, plan: Plan, places: Sequence[int]) -> bool:
    try:
        runtime.renew_connections({plan.credentials[plan.targets[at].environment] for at in places})
    except Exception:
        log.exception("renewal_broke")
        return False
    return True


def _doubts_connection(answer: Answer) -> bool:
    rule = rule_for(answer)
    return rule.fresh_connection and rule.delivery is DeliveryStep.RELEASE and rule.halt is Halt.PAUSE_APP


# --- weigh, record --------------------------------------------------------------------------------------------------


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


def _record(runtime: Runtime, claim: Claim, results: Results) -> dict[str, int]:
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


def _give_back(runtime: Runtime, claim: Claim) -> None:
    """After an error of our own: the batch is offered again later, and the error is raised for all to see."""
    try:
        with runtime.database.transaction() as transaction:
            delay = min(2.0 ** min(claim.setbacks, 6), 60.0)
            batches.release(transaction, claim, delay=delay, setbacks=min(claim.setbacks + 1, 100))
    except (*TRANSIENT, DatabaseUnavailableError) as error:
        log.warning("release_failed", batch=claim.batch_id, error=type(error).__name__)
