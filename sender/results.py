"""The result handler: a batch's answers become ledger rows, token states, changelog rows, retries and halts, in one
transaction. It can be run again after any failure: everything it writes is idempotent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import structlog

from sender.model import Accepted, Answer, CredentialRef, Push, Rejected
from sender.policy.backoff import blocklist_delay
from sender.policy.outcomes import Halt, Rule, TokenStep, is_known, rule_for
from sender.policy.verdict import Again, Final, Terms, Untouched, judge
from sender.store import apps, batches, devices, ledger, lifecycle, sending
from sender.store.batches import Claim, Target
from sender.store.database import Transaction
from sender.store.devices import Gone, Suspect, Throttled

log = structlog.get_logger()

#: Seconds for which a credential rests after TooManyProviderTokenUpdates.
PROVIDER_TOKEN_HOLD = 20 * 60.0

#: Seconds before a batch of which nothing could be issued is offered again: doubling per setback, up to a minute.
SETBACK_FIRST, SETBACK_LONGEST = 1.0, 60.0


class Sent(NamedTuple):
    """One push that was issued, with its answer and the credential it went out with."""

    target: Target
    push: Push
    answer: Answer
    credential: CredentialRef


@dataclass(slots=True, kw_only=True)
class Results:
    """What a batch comes to, before it is written."""

    sent: list[int] = field(default_factory=list)  # device ids accepted at the first attempt: nearly all of them
    finals: list[Final] = field(default_factory=list)
    again: list[Again] = field(default_factory=list)
    untouched: list[int] = field(default_factory=list)
    rest: float = 0.0  # seconds for which what is untouched must wait: its credential rests, or its turn is far
    gone: list[Gone] = field(default_factory=list)
    suspects: list[Suspect] = field(default_factory=list)
    throttled: list[Throttled] = field(default_factory=list)
    cleared: list[int] = field(default_factory=list)
    halts: dict[tuple[Halt, str], tuple[Rule, CredentialRef]] = field(default_factory=dict)


def weigh(
    claim: Claim,
    answered: Iterable[tuple[Target, Push, Answer | None]],
    *,
    credentials: Mapping[str, CredentialRef],
    terms: Terms,
    now: datetime,
    chance: Callable[[], float],
) -> Results:
    """Apply the outcome table to a batch's answers; what has none was not issued, and goes back untouched. Pure: the
    time and the chance are arguments."""
    results = Results()
    for target, push, answer in answered:
        if type(answer) is Accepted and not target.attempts and not target.blocklisted_times:
            results.sent.append(target.device_id)  # the plain case, and the hot path: what the table says, in short
        elif answer is None:
            results.untouched.append(target.device_id)
        else:
            one = Sent(target, push, answer, credentials[target.environment])
            _weigh_one(results, claim, one, terms=terms, now=now, chance=chance())
    return results


def _weigh_one(results: Results, claim: Claim, one: Sent, *, terms: Terms, now: datetime, chance: float) -> None:
    rule = rule_for(one.answer)
    verdict = judge(
        one.answer,
        rule,
        device_id=one.target.device_id,
        attempts=one.target.attempts,
        blocklisted_times=one.target.blocklisted_times,
        terms=terms,
        now=now,
        chance=chance,
    )
    match verdict:
        case Final():
            results.finals.append(verdict)
        case Again():
            results.again.append(verdict)
        case Untouched():
            results.untouched.append(verdict.device_id)
    if rule.token is not TokenStep.NONE:
        _note_token(results, claim, one, rule, until=now + _rest(one, chance, terms))
    if rule.halt is not Halt.NONE:
        results.halts.setdefault((rule.halt, rule.reason), (rule, one.credential))
    if not is_known(one.answer):
        _log_unknown(one.answer)


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


def _note_token(results: Results, claim: Claim, one: Sent, rule: Rule, *, until: datetime) -> None:
    target = one.target
    apns_id = UUID(one.push.apns_id)
    match rule.token:
        case TokenStep.CLEAR:
            if target.blocklisted_times:
                results.cleared.append(target.device_id)
        case TokenStep.INVALIDATE:
            results.gone.append(
                Gone(
                    device_id=target.device_id,
                    token=target.token,
                    registered_at=target.registered_at,
                    timestamp=one.answer.timestamp if isinstance(one.answer, Rejected) else None,
                    loaded_at=claim.loaded_at,
                    reason=rule.reason,
                    apns_id=apns_id,
                )
            )
        case TokenStep.QUARANTINE:
            results.suspects.append(
                Suspect(device_id=target.device_id, token=target.token, reason=rule.reason, apns_id=apns_id)
            )
        case TokenStep.BLOCKLIST:
            results.throttled.append(
                Throttled(device_id=target.device_id, until=until, times=target.blocklisted_times + 1, apns_id=apns_id)
            )
        case TokenStep.NONE:
            pass


def _rest(one: Sent, chance: float, terms: Terms) -> timedelta:
    return timedelta(seconds=blocklist_delay(one.target.blocklisted_times + 1, chance, scale=terms.backoff_scale))


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


_unknown_seen: set[tuple[int, str]] = set()


def _log_unknown(answer: Answer) -> None:
    if (
        isinstance(answer, Rejected)
        and (answer.status, answer.reason) not in _unknown_seen
        and len(_unknown_seen) < 100
    ):
        _unknown_seen.add((answer.status, answer.reason))
        log.warning("unknown_reason_received", status=answer.status, reason=answer.reason[:100])
