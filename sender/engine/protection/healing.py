"""Environment healing in a worker: a BadDeviceToken is tried once in the other environment, with the same push; what is
accepted there is delivered, and moves. Once that proved itself, the rest of that kind goes there straight away.

A plan's credentials say where its pushes go: going elsewhere is a plan with the other credential in that place.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeAlias

import structlog

from sender.engine.leases import Lease
from sender.engine.preparing import Plan
from sender.model import ACCEPTED, Accepted, Answer, CredentialRef
from sender.policy.guard import Counts
from sender.policy.healing import Record, is_refused, settle
from sender.policy.outcomes import Halt, rule_for
from sender.store.batches import Claim
from sender.store.healing import Move

log = structlog.get_logger()

#: Sends the pushes of a plan and puts their answers into the list.
Send: TypeAlias = Callable[[Plan, list[Answer | None]], None]

#: Seconds for which a probe waits for its turn, if the claim is not stopped: a push that was refused must not be made
#: again because its probe had to wait.
PATIENCE = 60.0

#: Campaigns and environments of which it is remembered what healing brought.
REMEMBERED = 1000


class Healing:
    """What this process knows of healing, by campaign and stored environment. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: OrderedDict[tuple[int, str], Record] = OrderedDict()

    def turn(self, claim: Claim, plan: Plan, environment: str | None = None) -> None:
        """Have the kinds that proved to belong to the other environment go there straight away: all of them, or the
        one of an environment, since what was issued of the others stays where it went."""
        if not claim.campaign.healing or len(plan.credentials) < 2:
            return
        plan.own = plan.own or dict(plan.credentials)
        kinds = list(plan.own) if environment is None else [environment]
        with self._lock:
            turned = {each for each in kinds if self._record(claim, each).goes_straight()}
        now = {each: _elsewhere(plan.own, each) if each in turned else plan.own[each] for each in kinds}
        plan.credentials = {**plan.credentials, **now}

    def learn(self, claim: Claim, environment: str, counts: Counts) -> None:
        """Take over what other workers found out in the campaign's slow start."""
        with self._lock:
            record = self._record(claim, environment)
            if not record.moves and counts.moved:
                record.note(moved=int(counts.moved), results=int(counts.judged))

    def know(self, claim: Claim, environment: str, probed: int, moved: int) -> None:
        """Take in how much all workers together have probed in a campaign, and moved: what is worth nothing to one is
        not tried by each of them."""
        if claim.campaign.healing:
            with self._lock:
                record = self._record(claim, environment)
                record.known, record.known_moves = probed, moved

    def heal(self, lease: Lease, plan: Plan, answers: list[Answer | None], send: Send) -> None:
        """Try what was refused in the environment that it was not sent to, and note who has to move."""
        if not plan.own:
            return
        for environment, places in plan.groups:
            self._heal(lease, plan, answers, send, environment=environment, places=places)

    def _heal(
        self,
        lease: Lease,
        plan: Plan,
        answers: list[Answer | None],
        send: Send,
        *,
        environment: str,
        places: Sequence[int],
    ) -> None:
        claim = lease.claim
        own, used = plan.own[environment], plan.credentials[environment]
        straight = used is not own
        accepted = [at for at in places if type(answers[at]) is Accepted]
        refused = [at for at in places if is_refused(answers[at])]
        if not refused and not straight:
            self._note(claim, environment, moved=0, results=len(accepted))
            return
        if not straight:  # in its own environment a device is always tried
            with self._lock:
                refused = refused[: self._record(claim, environment).allowance(len(refused), now=time.monotonic())]
        elsewhere = own if straight else _elsewhere(plan.own, environment)
        _probe(lease, plan, answers, send, places=refused, credential=elsewhere, last=straight)
        healed = [at for at in refused if type(answers[at]) is Accepted]
        moved, there = (accepted, used) if straight else (healed, _elsewhere(plan.own, environment))
        plan.moves += [_move(plan, at, there.environment.value) for at in moved]
        plan.probed[environment] = 0 if straight else len(refused)
        lost = sum(is_refused(answers[at]) for at in places)
        self._note(
            claim,
            environment,
            moved=len(moved),
            results=len(accepted) + len(healed) + lost,
            probes=plan.probed[environment],
            healed=0 if straight else len(healed),
        )

    def _note(self, claim: Claim, environment: str, *, moved: int, results: int, **probes: int) -> None:
        with self._lock:
            record = self._record(claim, environment)
            before = record.goes_straight()
            record.note(moved=moved, results=results, **probes)
            after = record.goes_straight()
        if before != after:
            log.info("healing_turned", campaign=claim.campaign.key, environment=environment, straight=after)

    def _record(self, claim: Claim, environment: str) -> Record:
        key = (claim.campaign.id, environment)
        record = self._records.get(key)
        if record is None:
            record = self._records[key] = Record()
            while len(self._records) > REMEMBERED:
                self._records.popitem(last=False)
        return record


def _probe(
    lease: Lease,
    plan: Plan,
    answers: list[Answer | None],
    send: Send,
    *,
    places: Sequence[int],
    credential: CredentialRef,
    last: bool,
) -> None:
    """Send refused pushes with another credential, and settle which answer counts. Those that a stop kept from it go
    back untouched; of those whose turn is too far off, or whose credential rests, the refusal stands.

    `last`: it is their own environment, which they went past. Its word counts whatever it says, and without it nothing
    is known of them: they go back untouched.
    """
    end = time.monotonic() + PATIENCE
    left = list(places)
    while left:
        part = Plan(
            targets=[plan.targets[at] for at in left],
            pushes=[plan.pushes[at] for at in left],
            credentials={plan.targets[left[0]].environment: credential},
        )
        found: list[Answer | None] = [None] * len(left)
        send(part, found)
        for at, answer in zip(left, found, strict=True):
            if answer is not None:
                answers[at] = _settle(plan, at, answers[at], answer, credential=credential, last=last)
        left = [at for at, answer in zip(left, found, strict=True) if answer is None]
        rests = part.rest == 0.0 or time.monotonic() + part.rest > end
        if rests or lease.stopped.wait(part.rest):
            break
    if last or lease.stopped.is_set():
        plan.rest = max(plan.rest, part.rest) if left else plan.rest
        for at in left:
            answers[at] = None


def _elsewhere(own: dict[str, CredentialRef], environment: str) -> CredentialRef:
    return next(credential for stored, credential in own.items() if stored != environment)


def _settle(
    plan: Plan, at: int, refusal: Answer | None, answer: Answer, *, credential: CredentialRef, last: bool
) -> Answer:
    """Which answer counts of a push that was refused and then sent with another credential, noted with whose it is."""
    counts = answer if last or refusal is None else settle(refusal, answer)
    if counts is answer:
        plan.probes[plan.targets[at].device_id] = credential
    elif (rule := rule_for(answer)).halt is Halt.HOLD_CREDENTIAL:  # the refusal stands, and so does this
        plan.holds.append((rule, credential))
    return ACCEPTED if type(counts) is Accepted else counts


def _move(plan: Plan, at: int, accepted: str) -> Move:
    target = plan.targets[at]
    return Move(target.device_id, target.token, target.environment, accepted, plan.pushes[at].apns_id)
