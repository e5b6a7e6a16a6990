"""Send the pushes of a plan: under its limits, again at once where that is safe, and once on a fresh connection where
the answer may be the connection's fault."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import structlog

from sender.engine.announcing import announced
from sender.engine.leases import Lease
from sender.engine.pacing import Leave, take_grant
from sender.engine.preparing import Plan
from sender.engine.runtime import Runtime
from sender.model import ACCEPTED, Accepted, Answer, NotProcessed
from sender.policy.outcomes import rule_for

log = structlog.get_logger()

#: How often a push that was provably not processed is issued again at once, before the queue has it back.
RESENDS = 2

#: Seconds before a batch asks for a grant anew that gave one up, since its pushes waited for a stream for long.
CROWDED = 0.5

#: Causes of a push that was not processed and that is not issued again by the same claim.
_NOT_AT_ONCE = ("connect", "recalled")


def issue(runtime: Runtime, lease: Lease, plan: Plan) -> list[Answer | None]:
    """Send the pushes of a plan under its limits; None for those that were not issued before a stop."""
    answers: list[Answer | None] = [None] * len(plan.pushes)
    runtime.healing.turn(lease.claim, plan)
    plan.groups = _by_environment(plan, range(len(plan.pushes)))
    _issue_round(runtime, lease, plan, range(len(plan.pushes)), answers, first=True)
    if answers.count(ACCEPTED) < len(answers):
        for _ in range(RESENDS):
            refused = [at for at, answer in enumerate(answers) if _may_resend(answer)]
            if not refused or lease.stopped.is_set():
                break
            _issue_round(runtime, lease, plan, refused, answers)
        _try_on_fresh_connection(runtime, lease, plan, answers)
    runtime.healing.heal(lease, plan, answers, lambda part, found: _issue_all(runtime, lease, part, found))
    return answers


def _issue_all(runtime: Runtime, lease: Lease, plan: Plan, answers: list[Answer | None]) -> None:
    """Send pushes that were sent before, with the credentials of this plan."""
    _issue_round(runtime, lease, plan, range(len(plan.pushes)), answers)
    if all(credential.environment == stored for stored, credential in plan.credentials.items()):  # its word counts
        _try_on_fresh_connection(runtime, lease, plan, answers)
    runtime.heed(plan.credentials, plan.targets, answers)


def _issue_round(
    runtime: Runtime,
    lease: Lease,
    plan: Plan,
    places: Sequence[int],
    answers: list[Answer | None],
    *,
    first: bool = False,
) -> None:
    """`first`: they were not sent before, so that a campaign's slow start counts them."""
    waiting: list[tuple[Sequence[int], Future[list[Answer | None]]]] = []
    try:
        for environment, group in plan.groups if first else _by_environment(plan, places):
            _issue_group(runtime, lease, plan, environment=environment, left=group, waiting=waiting, first=first)
    except Exception:  # what is on its way has answers: they are recorded before anything else
        lease.stopped.set()
        log.exception("issuing_broke", batch=lease.claim.batch_id, campaign=lease.claim.campaign.key)
    for part, future in waiting:
        for at, answer in zip(part, future.result(), strict=True):
            answers[at] = answer
        if answers[part[-1]] is None and not lease.stopped.is_set():
            plan.rest = max(plan.rest, CROWDED)


def _issue_group(
    runtime: Runtime,
    lease: Lease,
    plan: Plan,
    *,
    environment: str,
    left: Sequence[int],
    waiting: list[tuple[Sequence[int], Future[list[Answer | None]]]],
    first: bool,
) -> None:
    """Issue pushes of one environment, as many at a time as there is leave for."""
    credential, breakers = plan.credentials[environment], runtime.breakers
    _stand_back(runtime, lease, credential.identity)
    trial, issued = 0 if first else len(left), False  # pushes that the slow start lets out
    if lease.limits() and not breakers.shuts(credential.identity):
        runtime.connect(credential)
    while left and not breakers.rests(credential.identity):
        if not trial:
            room = runtime.guard.leave(runtime.database, lease, environment, len(left))
            trial = room.pushes
            if not issued:  # while it waited others may have learned where this kind belongs
                runtime.healing.turn(lease.claim, plan, environment)
                credential = plan.credentials[environment]
        leave = take_leave(runtime, lease, credential.identity, trial) if trial else room
        if not leave.pushes:
            turn = breakers.turn_of(credential.identity, len(left)) if leave.wait else 0.0
            plan.rest = max(plan.rest, leave.wait, turn)
            return
        part, left = left[: leave.pushes], left[leave.pushes :]
        trial -= len(part)
        issued = True
        before = len(waiting)
        for ours in announced(runtime, lease, plan, part):
            waiting.append((ours, runtime.issue(credential, [plan.pushes[at] for at in ours], lease)))
        if breakers.probes(credential.identity, lease.claim.owner):  # what it says decides on the others
            answers = [future.result()[0] for _, future in waiting[before:]]
            known = plan.targets[part[0]].blocklisted_times > 0
            breakers.end_probe(credential.identity, answers[0] if answers else None, throttled=known)


def _stand_back(runtime: Runtime, lease: Lease, identity: str) -> None:
    """Let workers that can connect go first: one that cannot is quick, and would take every batch and every probe."""
    if runtime.watcher.cannot_connect(identity) and not runtime.breakers.rests(identity):
        lease.stopped.wait(runtime.breakers.patience())


def take_leave(runtime: Runtime, lease: Lease, identity: str, wanted: int) -> Leave:
    """Leave to issue up to `wanted` pushes with a credential, under everything that limits them. One that rests gives
    leave for a single probe, when it is time, to one claim of all."""
    breakers = runtime.breakers
    probing = breakers.shuts(identity)
    leave = take_grant(
        runtime.database,
        lambda: [
            *(limits := lease.limits()),
            *breakers.pace(identity),
            *runtime.share(lease.claim.campaign.id, limits),
        ],
        1 if probing else wanted,
        lease.stopped,
        urgent=runtime.urgent,
        held=lease.age,
        tries=lease.claim.epoch,
    )
    if leave.pushes and probing and not breakers.begin_probe(identity, lease.claim.owner):
        return Leave(pushes=0)
    return leave


def _by_environment(plan: Plan, places: Sequence[int]) -> list[tuple[str, Sequence[int]]]:
    groups: dict[str, list[int]] = {}
    if len(plan.credentials) == 1:
        return [(environment, places) for environment in plan.credentials]
    for at in places:
        groups.setdefault(plan.targets[at].environment, []).append(at)
    return list(groups.items())


def _may_resend(answer: Answer | None) -> bool:
    return isinstance(answer, NotProcessed) and not answer.cause.startswith(_NOT_AT_ONCE)


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
    return rule_for(answer).doubts_refusal
