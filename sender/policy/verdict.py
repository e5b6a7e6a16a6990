"""What becomes of one delivery, given its answer: final, again later, or back to the queue untouched. Pure: the time
and the chance are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeAlias

from sender.model import Answer, Rejected
from sender.policy.backoff import MAX_ATTEMPTS, blocklist_delay, retry_delay
from sender.policy.outcomes import DeliveryStep, Rule
from sender.policy.states import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """The end of one delivery. `status` is the HTTP status of the last answer, if there was one."""

    device_id: int
    outcome: Outcome
    reason: str | None = None
    status: int | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A delivery that waits for another attempt. `attempts` are those charged so far."""

    device_id: int
    due_at: datetime
    attempts: int
    reason: str
    status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Untouched:
    """A delivery that goes back to the queue as if nothing had happened."""

    device_id: int


Verdict: TypeAlias = Final | Again | Untouched


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a campaign promises about its deliveries."""

    at_least_once: bool
    expiration: datetime | None  # None: one attempt, nothing is stored or sent again
    backoff_scale: float = 1.0


def judge(
    answer: Answer,
    rule: Rule,
    *,
    device_id: int,
    attempts: int,
    blocklisted_times: int,
    terms: Terms,
    now: datetime,
    chance: float,
) -> Verdict:
    """The verdict on one delivery. `attempts` were charged before this answer, `chance` is random in [0, 1)."""
    status = answer.status if isinstance(answer, Rejected) else 200 if rule.delivery is DeliveryStep.SENT else None
    reason = _plain(answer.reason or rule.reason) if isinstance(answer, Rejected) else rule.reason or None

    def final(outcome: Outcome) -> Final:
        return Final(device_id=device_id, outcome=outcome, reason=reason, status=status, attempts=attempts + 1)

    def again(delay: float, *, charge: int, otherwise: Outcome) -> Verdict:
        due_at = now + timedelta(seconds=delay)
        if terms.expiration is None:
            return final(otherwise)
        if due_at >= terms.expiration:
            return final(Outcome.EXPIRED)
        return Again(device_id=device_id, due_at=due_at, attempts=attempts + charge, reason=reason or "", status=status)

    scale = terms.backoff_scale
    last = attempts + 1 >= MAX_ATTEMPTS
    match rule.delivery:
        case DeliveryStep.SENT:
            return final(Outcome.SENT)
        case DeliveryStep.RELEASE | DeliveryStep.RESEND:
            return Untouched(device_id=device_id)
        case DeliveryStep.DEFER:
            rest = blocklist_delay(blocklisted_times + 1, chance, scale=scale)
            return again(rest, charge=0, otherwise=Outcome.EXPIRED)
        case DeliveryStep.RETRY if not last:
            return again(retry_delay(attempts + 1, chance, scale=scale), charge=1, otherwise=Outcome.REJECTED)
        case DeliveryStep.UNKNOWN if terms.at_least_once and not last:
            return again(retry_delay(attempts + 1, chance, scale=scale), charge=1, otherwise=Outcome.UNKNOWN)
        case DeliveryStep.UNKNOWN:
            return final(Outcome.UNKNOWN)
        case _:
            return final(Outcome.REJECTED)


def _plain(reason: str) -> str:
    """A server's word as it can be stored: no NUL, no lone surrogate, no novel."""
    return reason.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()[:100]
