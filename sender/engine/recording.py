"""The result handler's hand: what a batch comes to is written as ledger rows, token states, changelog rows, retries and
halts, in one transaction. It can be run again after any failure: everything it writes is idempotent."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from uuid import UUID

import structlog

from sender.engine.mishaps import survived
from sender.engine.poison import name_error
from sender.engine.protection.breaker import log_opened
from sender.engine.protection.guard import Believed
from sender.engine.results import Results
from sender.engine.runtime import Runtime
from sender.engine.salvage import record_apart
from sender.policy.breaker import PROVIDER_TOKEN_HOLD
from sender.policy.outcomes import Halt
from sender.policy.pace import SMALL
from sender.policy.poison import failure_delay
from sender.policy.states import Outcome
from sender.store import apps, batches, breakers, devices, healing, intents, ledger, lifecycle, quarantine
from sender.store.batches import Claim
from sender.store.breakers import Opening
from sender.store.database import Transaction
from sender.store.devices import Gone
from sender.store.outages import is_outage

log = structlog.get_logger()

#: Seconds before a batch of which nothing could be issued is offered again: doubling per setback, up to a minute.
SETBACK_FIRST, SETBACK_LONGEST = 1.0, 60.0

#: Seconds between two attempts to record while the database is away, at the most: a batch's answers wait in the memory
#: of the thread that has them, and nothing more is sent by it.
LONGEST_PAUSE = 5.0


def record_surely(runtime: Runtime, claim: Claim, results: Results) -> dict[str, int]:
    """Write the results, for as long as it takes: answers are facts that must not be lost with the database away.

    Small batches of which everything was accepted are written with those that other threads have at the same moment.
    """
    if not is_plain(claim, results):
        return _record_alone(runtime, claim, results)
    return runtime.recording.do(
        (claim, results),
        together=lambda some: _record_together(runtime, some),
        alone=lambda each: _record_alone(runtime, *each),
    )


def is_plain(claim: Claim, results: Results) -> bool:
    """Whether a batch comes to nothing but rows of the ledger and its own end, few of them, and no locks of others."""
    return (
        claim.fresh
        and claim.campaign.delivery == "at_least_once"
        and 0 < len(results.sent) == len(claim.device_ids) <= SMALL
        and not (results.halts or results.moves or results.cleared or results.error)
        and (results.guard is None or results.guard.is_calm(claim, results.tallies))
    )


def _record_together(runtime: Runtime, some: Sequence[tuple[Claim, Results]]) -> list[dict[str, int] | None]:
    """None for those that are not ours any more, or that somebody holds."""
    with runtime.database.transaction(pipelined=True) as transaction:
        counting = ledger.record_sent(transaction, [(claim, results.sent) for claim, results in some])
        for claim, results in sorted(some, key=lambda each: each[0].campaign.id):
            waited = _believed(transaction, claim, results).waited
            devices.invalidate(transaction, waited, claim.campaign.id)
    counted: dict[UUID, int] = dict(counting.fetchall())
    return [{Outcome.SENT.value: counted[claim.owner]} if claim.owner in counted else None for claim, _ in some]


def _record_alone(runtime: Runtime, claim: Claim, results: Results) -> dict[str, int]:
    """What the database refuses for good is told apart, so that it costs one delivery and not the batch."""
    scale = runtime.settings.backoff_scale
    try:
        return _persist(runtime, claim, lambda transaction: record(transaction, claim, results, scale=scale))
    except Exception as error:
        if is_outage(error):  # the process ends, and cannot wait for the database any longer
            raise
        log.exception("recording_broke", batch=claim.batch_id, campaign=claim.campaign.key)
        return _record_apart(runtime, claim, results)


def record(transaction: Transaction, claim: Claim, results: Results, *, scale: float) -> dict[str, int]:
    """Write a batch's results; returns what was counted, by outcome, for the task's own result.

    A fenced claim (its lease ended, somebody else has the batch) may still say what APNs accepted and rejected, since
    those are facts; it may not release, postpone or finish anything.
    """
    ours = batches.fence(transaction, claim)
    ends = ours and not results.untouched
    counts = _record_facts(transaction, claim, results, ours=ours, ends=ends)
    _record_halts(transaction, claim, results, scale=scale)
    if ours:
        return counts | _end_claim(transaction, claim, results, scale=scale, ended=ends)
    log.warning("claim_fenced", batch=claim.batch_id, campaign=claim.campaign.key, epoch=claim.epoch)
    return counts | {"fenced": 1}


def give_back(runtime: Runtime, claim: Claim, error: Exception) -> None:
    """After an error of our own: it is kept with the batch, which is offered again later, and raised for all to see."""
    delay = failure_delay(claim.failures, scale=runtime.settings.backoff_scale)
    with survived("release", batch=claim.batch_id), runtime.database.transaction() as transaction:
        if is_outage(error):
            batches.release(transaction, claim, delay=delay)
        else:
            batches.give_back(transaction, claim, error=name_error(error), delay=delay)


def _record_facts(
    transaction: Transaction, claim: Claim, results: Results, *, ours: bool, ends: bool = False
) -> dict[str, int]:
    """What is known of single devices: their ends, their tokens, and, if the claim is still ours, their retries.
    `ends`: nothing of the batch is left to send, so that it is done with what is counted."""
    retried = claim.kind == "retry" or claim.epoch > 1 or not ours
    if retried:
        ledger.hold_retries(transaction, claim.campaign.id, results.device_ids())
    counts: dict[str, int] = {}
    if ours or not _is_over(transaction, claim, results):
        counts = ledger.record(transaction, claim, results.sent, results.finals, retried=retried, ends=ends)
    _record_tokens(transaction, claim, results)
    if claim.campaign.delivery == "at_most_once":
        _end_intents(transaction, claim, results, ours=ours)
    if ours and results.again:
        ledger.postpone(transaction, claim, results.again)
        counts["retrying"] = len(results.again)
    return counts


def _is_over(transaction: Transaction, claim: Claim, results: Results) -> bool:
    """Whether late answers come after their campaign's end: all of its deliveries are final then, and retention may
    have removed their rows, or the whole month, since."""
    if not lifecycle.is_finished(transaction, claim.campaign.id):
        return False
    late = len(results.sent) + len(results.finals)
    log.warning("late_answers_ignored", batch=claim.batch_id, campaign=claim.campaign.key, answers=late)
    return True


def _end_claim(
    transaction: Transaction, claim: Claim, results: Results, *, scale: float, ended: bool = False
) -> dict[str, int]:
    """Finish the batch, unless it has ended with its counts, or release it with what was not issued."""
    if results.error is not None:
        batches.keep_error(transaction, claim, results.error)
    if claim.kind == "retry":
        ledger.end_settled_retries(transaction, claim)
    if not results.untouched:
        if not ended:
            batches.finish(transaction, claim)
        return {}
    issued = bool(results.sent or results.finals or results.again)
    setbacks = 0 if issued or results.rest else claim.setbacks + 1
    setback = 0.0 if not setbacks else min(SETBACK_FIRST * 2.0 ** min(claim.setbacks, 10), SETBACK_LONGEST) * scale
    delay = max(setback, results.rest)
    batches.release(transaction, claim, delay=delay, setbacks=min(setbacks, 100), progress=issued)
    return {"released": len(results.untouched)}


def _end_intents(transaction: Transaction, claim: Claim, results: Results, *, ours: bool) -> None:
    """Whatever was announced is final now, waits in the retries after a definite answer, or was not issued at all."""
    final = [*results.sent, *(item.device_id for item in results.finals)]
    open_ = [*results.untouched, *(item.device_id for item in results.again)]
    intents.end_own(transaction, claim, final + open_)
    if ours and not claim.fresh:  # what an earlier claim announced has come to its end too
        intents.end(transaction, claim.campaign.id, final)


def _record_apart(runtime: Runtime, claim: Claim, results: Results) -> dict[str, int]:
    """Record what can be recorded, then end the claim, with the error of what could not."""
    scale = runtime.settings.backoff_scale

    def judge(transaction: Transaction) -> dict[str, int]:
        believed = _believed(transaction, claim, results)
        devices.invalidate(transaction, believed.waited, claim.campaign.id)
        results.gone = list(believed.gone)
        return {}

    def facts(transaction: Transaction, part: Results) -> dict[str, int]:
        return _record_facts(transaction, claim, part, ours=batches.fence(transaction, claim))

    def halts(transaction: Transaction) -> dict[str, int]:
        _record_halts(transaction, claim, results, scale=scale)
        return {}

    def end(transaction: Transaction) -> dict[str, int]:
        if not batches.fence(transaction, claim):
            return {"fenced": 1}
        batches.keep_error(transaction, claim, error, unwritten=len(unwritten))
        ledger.end_retries(transaction, claim.campaign.id, unwritten)
        return _end_claim(transaction, claim, results, scale=scale)

    if not _try_to(runtime, claim, judge):
        results.gone = []  # what nobody judged is not believed
    counts, unwritten, error = record_apart(
        claim, results, lambda part: _persist(runtime, claim, lambda transaction: facts(transaction, part))
    )
    _try_to(runtime, claim, halts)
    return counts | _persist(runtime, claim, end)


def _try_to(runtime: Runtime, claim: Claim, write: Callable[[Transaction], dict[str, int]]) -> bool:
    """Write what the deliveries can do without: False when it cannot be written."""
    try:
        _persist(runtime, claim, write)
    except Exception as error:
        if is_outage(error):
            raise
        log.exception("recording_broke", batch=claim.batch_id, campaign=claim.campaign.key)
        return False
    return True


def _persist(runtime: Runtime, claim: Claim, write: Callable[[Transaction], dict[str, int]]) -> dict[str, int]:
    """Run a transaction until it is committed, through outages; an error that would come again is raised.

    A process that stops waits no longer than it may: then the outage is raised, and what was to be written is lost.
    """
    pause = 0.1
    while True:
        try:
            with runtime.database.transaction() as transaction:
                return write(transaction)
        except Exception as error:
            if not is_outage(error):
                raise
            if not runtime.stopping.may_wait():
                log.exception("results_lost", batch=claim.batch_id, campaign=claim.campaign.key)
                raise
            log.warning("record_delayed", batch=claim.batch_id, error=type(error).__name__, seconds=pause)
            runtime.stopping.pause(pause * (0.5 + random.random()))  # noqa: S311
            pause = min(pause * 2, LONGEST_PAUSE, runtime.settings.lease / 6)


def _record_tokens(transaction: Transaction, claim: Claim, results: Results) -> None:
    campaign_id = claim.campaign.id
    believed = _believed(transaction, claim, results)
    gone = [*believed.gone, *believed.waited]
    accepted = [final.device_id for final in results.finals if final.outcome is Outcome.SENT]
    tested = [*results.sent, *accepted] if claim.retest else []
    _hold_devices(transaction, gone, results, tested)
    if gone:
        devices.invalidate(transaction, gone, campaign_id)
    if results.moves:
        healing.move(transaction, results.moves, campaign_id)
    if results.suspects:
        devices.quarantine(transaction, results.suspects, campaign_id)
    if results.throttled:
        devices.blocklist(transaction, results.throttled, campaign_id)
    if results.cleared:
        devices.clear_blocklist(transaction, results.cleared, campaign_id)
    if tested:
        quarantine.release_tested(transaction, tested, campaign_id)


def _hold_devices(transaction: Transaction, gone: Sequence[Gone], results: Results, tested: Sequence[int]) -> None:
    """Hold the devices of several kinds of answers together: kind by kind, campaigns that share devices could wait for
    each other crosswise."""
    named = (gone, results.moves, results.suspects, results.throttled, results.cleared)
    kinds: list[Sequence[int]] = [[each.device_id for each in some] for some in named if some]
    kinds += [tested] if tested else []
    if len(kinds) > 1:
        devices.hold(transaction, {device_id for kind in kinds for device_id in kind})


def _believed(transaction: Transaction, claim: Claim, results: Results) -> Believed:
    """The 410s that the guard lets count now."""
    if results.guard is None:
        return Believed(results.gone, ())
    return results.guard.rule(transaction, claim, results.tallies, results.gone)


def _record_halts(transaction: Transaction, claim: Claim, results: Results, *, scale: float) -> None:
    campaign = claim.campaign
    # the campaign first, as where the guard trips, then its app, then the credential: batches never wait crosswise
    for (halt, reason, _), (rule, credential) in sorted(results.halts.items(), key=lambda item: item[0], reverse=True):
        why = f"{reason}: {rule.meaning} {rule.advice}"
        match halt:
            case Halt.HOLD_CREDENTIAL:
                opening = Opening(cause=why, chance=random.random(), scale=scale, at_least=PROVIDER_TOKEN_HOLD * scale)  # noqa: S311
                log_opened(breakers.hold(transaction, credential.identity, opening))
            case Halt.PAUSE_APP:
                apps.pause_app(transaction, campaign.app_id, why)
            case Halt.STOP_CAMPAIGN:
                lifecycle.fail(transaction, campaign.id, why)
            case Halt.NONE:
                continue
        log.error("halt_ordered", halt=halt.value, campaign=campaign.key, app=campaign.bundle_id, reason=reason)
