"""What a claim comes to before anything is sent: pushes with their targets, and what is decided without one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from sender.apns_ids import delivery_apns_ids
from sender.model import CredentialRef, Push
from sender.policy.states import DeviceState, Outcome
from sender.policy.verdict import Again, Final
from sender.store.batches import Claim, Target
from sender.store.segments import NEEDS_AUTHORIZATION

_SKIPPED: dict[str, str] = {
    DeviceState.INVALID.value: "Invalid",
    DeviceState.QUARANTINED.value: "Quarantined",
    DeviceState.OPTED_OUT.value: "OptedOut",
}


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


def wait_for_holds(claim: Claim, plan: Plan, until: datetime) -> None:
    """What must wait for a credential goes back with the whole batch, or, when the rest of it can go, to the retries:
    the environment that does not rest must not wait for the other."""
    if plan.pushes:
        for target in plan.held:
            _wait(plan, target, until, claim.campaign.expiration, "CredentialHeld")
    elif plan.held:
        plan.untouched += [target.device_id for target in plan.held]
        plan.rest = max(0.0, (until - claim.loaded_at).total_seconds())
