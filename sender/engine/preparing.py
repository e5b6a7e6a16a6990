"""What a claim comes to before anything is sent: pushes with their targets, and what is decided without one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from sender.apns_ids import delivery_apns_ids
from sender.model import CredentialRef, Push
from sender.policy.outcomes import MAY_HAVE_BEEN_SENT, Rule
from sender.policy.states import DeviceState, Outcome
from sender.policy.verdict import Again, Final
from sender.store.batches import Claim, Target
from sender.store.healing import Move
from sender.store.segments import NEEDS_AUTHORIZATION

_SKIPPED: dict[str, str] = {
    DeviceState.INVALID.value: "Invalid",
    DeviceState.QUARANTINED.value: "Quarantined",
    DeviceState.OPTED_OUT.value: "OptedOut",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A claim and what was loaded with it, as of one moment."""

    claim: Claim
    targets: Sequence[Target]
    credentials: Mapping[str, CredentialRef]  # by environment
    holds: Mapping[str, datetime]  # credentials that rest, by identity, and until when
    missing: Collection[int] = field(default=())  # devices that are gone: deleted, or moved to another app
    doubtful: Collection[int] = field(default=())  # devices that an earlier claim may have sent to: never again


@dataclass(slots=True, kw_only=True)
class Plan:
    """Pushes with their targets, and the rest of a claim with what is decided of it already."""

    targets: list[Target] = field(default_factory=list)
    pushes: list[Push] = field(default_factory=list)  # one for each of the targets
    credentials: Mapping[str, CredentialRef] = field(default_factory=dict)  # by environment
    finals: list[Final] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    untouched: list[int] = field(default_factory=list)
    held: list[Target] = field(default_factory=list)  # their credential rests
    rest: float = 0.0  # seconds before what is not issued may be tried again
    groups: list[tuple[str, Sequence[int]]] = field(default_factory=list)  # places by stored environment
    own: dict[str, CredentialRef] = field(default_factory=dict)  # by environment, for an app that is healed
    moves: list[Move] = field(default_factory=list)  # accepted in the other environment
    probed: dict[str, int] = field(default_factory=dict)  # by stored environment
    probes: dict[int, CredentialRef] = field(default_factory=dict)  # by device: the credential that the answer is of
    holds: list[tuple[Rule, CredentialRef]] = field(default_factory=list)  # who was probed, and must rest


def prepare(work: Work) -> Plan:
    """Make the pushes of a claim. A device can only be removed here, with a cause, or wait its rest out."""
    claim = work.claim
    held = {environment for environment, ref in work.credentials.items() if ref.identity in work.holds}
    plan = Plan(credentials=work.credentials)
    plan.finals += [_ended(id, Outcome.SKIPPED, "Moved") for id in work.missing]
    plan.finals += [_ended(id, Outcome.UNKNOWN, MAY_HAVE_BEEN_SENT) for id in work.doubtful]
    _make_pushes(plan, claim, work.targets, held)
    _wait_for_holds(claim, plan, work.holds)
    return plan


def _make_pushes(plan: Plan, claim: Claim, targets: Iterable[Target], held: Collection[str]) -> None:
    campaign = claim.campaign
    expired = campaign.expiration is not None and campaign.expiration <= claim.loaded_at
    apns_id = delivery_apns_ids(campaign.id)
    open_to = set(plan.credentials) - set(held)
    for target in targets:
        _, token, environment, state, authorization, *_ = target
        plain = state == "active" and environment in open_to and not expired and authorization != "denied"
        if plain or not _keep_back(plan, claim, target, held, expired=expired):
            plan.targets.append(target)
            plan.pushes.append(Push(token, apns_id(target.device_id), campaign.payload, campaign.headers))


def _keep_back(plan: Plan, claim: Claim, target: Target, held: Collection[str], *, expired: bool) -> bool:
    """Note what becomes of a device that is not sent to now; False when it is, after all."""
    headers = claim.campaign.headers
    if expired:
        plan.finals.append(_removed(target, Outcome.EXPIRED, "Expired"))
    elif target.state in _SKIPPED and not (claim.retest and target.state == DeviceState.QUARANTINED):
        plan.finals.append(_removed(target, Outcome.SKIPPED, _SKIPPED[target.state]))
    elif target.environment not in plan.credentials:
        plan.finals.append(_removed(target, Outcome.SKIPPED, "NoCredential"))
    elif headers.push_type in NEEDS_AUTHORIZATION and target.authorization == "denied":
        plan.finals.append(_removed(target, Outcome.SKIPPED, "NotReachable"))
    elif target.blocklisted_until is not None and target.blocklisted_until > claim.loaded_at:
        _wait(plan, target, target.blocklisted_until, claim.waits_until, "TooManyRequests")
    elif target.environment in held:
        plan.held.append(target)
    else:
        return False
    return True


def _ended(device_id: int, outcome: Outcome, reason: str) -> Final:
    return Final(device_id=device_id, outcome=outcome, reason=reason, attempts=0)


def _removed(target: Target, outcome: Outcome, reason: str) -> Final:
    return Final(device_id=target.device_id, outcome=outcome, reason=reason, attempts=target.attempts)


def _wait(plan: Plan, target: Target, until: datetime, expiration: datetime | None, reason: str) -> None:
    if expiration is None or until >= expiration:
        plan.finals.append(_removed(target, Outcome.EXPIRED, reason))
    else:
        plan.again.append(Again(device_id=target.device_id, due_at=until, attempts=target.attempts, reason=reason))


def _wait_for_holds(claim: Claim, plan: Plan, holds: Mapping[str, datetime]) -> None:
    """What must wait for a credential goes back with the whole batch, or, when the rest of it can go sooner, to the
    retries: the environment that does not rest must not wait for the other. It expires only when its turn comes."""
    if not plan.held:
        return
    until = {target.environment: holds[plan.credentials[target.environment].identity] for target in plan.held}
    soonest = min(until.values())
    for target in plan.held:
        if plan.pushes or until[target.environment] > soonest:
            plan.again.append(held_back(target, until[target.environment]))
        else:
            plan.untouched.append(target.device_id)
            plan.rest = max(0.0, (soonest - claim.loaded_at).total_seconds())


def held_back(target: Target, until: datetime) -> Again:
    """A delivery that waits for its credential; nothing is charged."""
    return Again(device_id=target.device_id, due_at=until, attempts=target.attempts, reason="CredentialHeld")
