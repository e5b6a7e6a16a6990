"""The result handler's judgement: what a batch's answers come to, by the outcome table. Pure; `recording` writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

import structlog

from sender.engine.protection.guard import Guard, Tally
from sender.model import Accepted, Answer, CredentialRef, Push, Rejected
from sender.policy.backoff import blocklist_delay
from sender.policy.outcomes import Halt, Rule, TokenStep, is_known, rule_for
from sender.policy.verdict import Again, Final, Terms, Untouched, judge
from sender.store.batches import Claim, Target
from sender.store.devices import Gone, Rested, Suspect, Throttled
from sender.store.healing import Move

log = structlog.get_logger()


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
    cleared: list[Rested] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)  # accepted in the other environment
    halts: dict[tuple[Halt, str, str], tuple[Rule, CredentialRef]] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)  # by stored environment, for the guard
    guard: Guard | None = None  # who judges them; None: nobody
    error: str | None = None  # of our own, on one of the deliveries

    def device_ids(self) -> list[int]:
        """Whose deliveries ended, or wait for another attempt."""
        return [*self.sent, *(final.device_id for final in self.finals), *(again.device_id for again in self.again)]

    def halt(self, rule: Rule, credential: CredentialRef) -> None:
        """Note what must stop beside the delivery: once, or once for each credential that must rest."""
        whose = credential.identity if rule.halt is Halt.HOLD_CREDENTIAL else ""
        self.halts.setdefault((rule.halt, rule.reason, whose), (rule, credential))


def weigh(
    claim: Claim,
    answered: Iterable[tuple[Target, Push, Answer | None]],
    *,
    credentials: Mapping[str, CredentialRef],
    probes: Mapping[int, CredentialRef],
    terms: Terms,
    now: datetime,
    chance: Callable[[], float],
) -> Results:
    """Apply the outcome table to a batch's answers; what has none was not issued, and goes back untouched. Pure: the
    time and the chance are arguments. `probes`: devices whose answer is another credential's."""
    results = Results()
    for target, push, answer in answered:
        if type(answer) is Accepted and not target.attempts and not target.blocklisted_times:
            results.sent.append(target.device_id)  # the plain case, and the hot path: what the table says, in short
        elif answer is None:
            results.untouched.append(target.device_id)
        else:
            one = Sent(target, push, answer, probes.get(target.device_id, credentials[target.environment]))
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
        results.halt(rule, one.credential)
    if not is_known(one.answer):
        _log_unknown(one.answer)


def _note_token(results: Results, claim: Claim, one: Sent, rule: Rule, *, until: datetime) -> None:
    target = one.target
    apns_id = UUID(one.push.apns_id)
    match rule.token:
        case TokenStep.CLEAR:
            if target.blocklisted_times:
                results.cleared.append(Rested(device_id=target.device_id, times=target.blocklisted_times))
        case TokenStep.INVALIDATE:
            results.gone.append(
                Gone(
                    device_id=target.device_id,
                    token=target.token,
                    environment=target.environment,
                    registered_at=target.registered_at,
                    timestamp=one.answer.timestamp if isinstance(one.answer, Rejected) else None,
                    loaded_at=claim.loaded_at,
                    reason=rule.reason,
                    apns_id=apns_id,
                )
            )
        case TokenStep.QUARANTINE:
            results.suspects.append(
                Suspect(
                    device_id=target.device_id,
                    token=target.token,
                    environment=target.environment,
                    reason=rule.reason,
                    apns_id=apns_id,
                )
            )
        case TokenStep.BLOCKLIST:
            results.throttled.append(
                Throttled(device_id=target.device_id, until=until, times=target.blocklisted_times + 1, apns_id=apns_id)
            )
        case TokenStep.NONE:
            pass


def _rest(one: Sent, chance: float, terms: Terms) -> timedelta:
    return timedelta(seconds=blocklist_delay(one.target.blocklisted_times + 1, chance, scale=terms.backoff_scale))


_unknown_seen: set[tuple[int, str]] = set()


def _log_unknown(answer: Answer) -> None:
    if (
        isinstance(answer, Rejected)
        and (answer.status, answer.reason) not in _unknown_seen
        and len(_unknown_seen) < 100
    ):
        _unknown_seen.add((answer.status, answer.reason))
        log.warning("unknown_reason_received", status=answer.status, reason=answer.reason[:100])
