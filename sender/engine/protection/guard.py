"""The guard at work in a worker: slow starts, and the judgement of what is about to be recorded.

What is trusted is remembered, so that nothing is asked of the database for a campaign at full speed; what this process
itself has seen of a campaign lately is a window of counters.
"""

from __future__ import annotations

import random
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import structlog

from sender.engine.leases import Lease
from sender.engine.pacing import PATIENCE, Leave
from sender.engine.protection.trusting import trust
from sender.policy.diagnosis import diagnose
from sender.policy.guard import Counts, Thresholds, Trip, Window, assess, in_doubt, least_of, may_be_suspicious
from sender.policy.states import TrialState
from sender.settings import Settings
from sender.store import baselines, evidence, lifecycle, trials
from sender.store.batches import Claim
from sender.store.database import Database, Transaction
from sender.store.devices import Gone

log = structlog.get_logger()

#: Seconds between two looks at whether a trial has room, and before a batch that found none comes again.
LOOK_AGAIN, COME_AGAIN = 0.02, 0.5

#: Seconds for which a batch waits for whoever is at the trial's row just then: shorter than to come again.
ELBOW_ROOM = 0.4

#: Campaigns and environments that are remembered as trusted.
REMEMBERED = 1000

#: Seconds for which what is usual is believed, and after which answers of a quiet campaign count as history: a slow one
#: is not over because a worker had nothing of it for a while.
BELIEVED, QUIET = 60.0, 300.0


class Ruling(StrEnum):
    """What may be done with the 410s of a batch in one environment."""

    APPLY = "apply"  # invalidate
    STAGE = "stage"  # wait for the verdict
    DROP = "drop"  # the guard tripped: nothing is invalidated


class Believed(NamedTuple):
    """410s whose devices are to be invalidated in this transaction: of the batch that was judged, and those that waited
    for its verdict."""

    gone: Sequence[Gone]
    waited: Sequence[Gone]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a batch says of the tokens of one environment (the stored one)."""

    counts: Counts = field(default_factory=Counts)
    refused: list[int] = field(default_factory=list)  # device ids
    probed: int = 0
    noted: bool = False  # in this process's own counters: recording may run more than once
    trip: Trip | None = None  # what those said, for the same reason


@dataclass(slots=True)
class _Seen:
    """What this process saw of a campaign in an environment since it is trusted."""

    app_id: int
    window: Window
    at: float
    staged: bool = False


class Guard:
    """One process's guard. Thread-safe."""

    def __init__(
        self,
        thresholds: Thresholds,
        *,
        stop: Callable[[int], None],
        learn: Callable[[Claim, str, Counts], None],
        know: Callable[[Claim, str, int, int], None],
    ) -> None:
        """`stop` has every claim of a campaign in this process issue nothing more; `learn` is told of the answers of a
        slow start when it is over, `know` of all workers' probes and moves whenever they are heard of."""
        self.thresholds = thresholds
        self._stop = stop
        self._learn = learn
        self._know = know
        self._lock = threading.Lock()
        self._trusted: OrderedDict[tuple[int, str, int], bool] = OrderedDict()
        self._seen: dict[tuple[int, str], _Seen] = {}
        self._history: dict[int, dict[str, Counts]] = {}  # by app and environment: not written yet
        self._usual: dict[int, tuple[float, dict[str, Counts]]] = {}
        self._asking: set[tuple[int, str, int]] = set()

    # --- slow start -------------------------------------------------------------------------------------------------

    def leave(self, database: Database, lease: Lease, environment: str, wanted: int) -> Leave:
        """Leave to issue up to `wanted` pushes as far as a slow start goes. Waits a little for others' results; where
        they take longer, and for what is left of a batch that has pushes outstanding itself, it says when to come
        again."""
        audience = lease.claim.campaign.audience
        if audience is not None and audience <= self.thresholds.outstanding:
            return Leave(pushes=wanted)
        since = time.monotonic()
        while not lease.stopped.is_set():
            if self.trusts(lease.claim, environment):
                return Leave(pushes=wanted)
            room = self._ask(database, lease.claim, environment, wanted)
            if room is not None:
                self._know(lease.claim, environment, room.probed, int(room.counts.moved))
            if room is not None and room.state is TrialState.TRUSTED:
                self._learn(lease.claim, environment, room.counts)
                self._trust(lease.claim, environment, resumed=room.resumed)
                continue
            if room is not None and room.pushes:
                return Leave(pushes=room.pushes)
            if room is not None and (room.held or room.state is TrialState.TRIPPED):
                return Leave(pushes=0, wait=COME_AGAIN)
            if time.monotonic() - since >= (ELBOW_ROOM if room is None else PATIENCE):
                return Leave(pushes=0, wait=COME_AGAIN)
            lease.stopped.wait(LOOK_AGAIN * (0.5 + random.random() / 2))  # noqa: S311
        return Leave(pushes=0)

    def trusts(self, claim: Claim, environment: str) -> bool:
        """Whether this process knows that the campaign is trusted there."""
        return _key(claim, environment) in self._trusted

    def _ask(self, database: Database, claim: Claim, environment: str, wanted: int) -> trials.Room | None:
        """One thread of the process asks for a campaign at a time; None for the others, and when another process is at
        it."""
        key = _key(claim, environment)
        with self._lock:
            if key in self._asking:
                return None
            self._asking.add(key)
        try:
            with database.transaction() as transaction:
                return trials.reserve(transaction, claim, environment, wanted=wanted, most=self.thresholds.outstanding)
        finally:
            with self._lock:
                self._asking.discard(key)

    def _trust(self, claim: Claim, environment: str, *, resumed: bool) -> None:
        with self._lock:
            if resumed:
                self._seen.pop((claim.campaign.id, environment), None)  # of before the trip
            self._trusted[_key(claim, environment)] = resumed
            while len(self._trusted) > REMEMBERED:
                self._trusted.popitem(last=False)

    # --- judgement --------------------------------------------------------------------------------------------------

    def rule(
        self, transaction: Transaction, claim: Claim, tallies: Mapping[str, Tally], gone: Sequence[Gone]
    ) -> Believed:
        """Judge what is recorded in this transaction; returns the 410s that may be believed now. The others wait for
        the verdict, or are dropped."""
        waited: list[Gone] = []
        rulings = self._judge_all(transaction, claim, tallies, waited)
        if not gone or all(ruling is Ruling.APPLY for ruling in rulings.values()):
            return Believed(gone, waited)
        staged = [hit for hit in gone if rulings.get(hit.environment) is Ruling.STAGE]
        trials.stage(transaction, claim.campaign.id, staged)
        return Believed([hit for hit in gone if rulings.get(hit.environment, Ruling.APPLY) is Ruling.APPLY], waited)

    def is_calm(self, claim: Claim, tallies: Mapping[str, Tally]) -> bool:
        """Whether judging these is a matter of this process's own counters, as in the ordinary case."""
        audience = claim.campaign.audience
        if audience is not None and audience < self.thresholds.few:
            return True
        return all(
            self.trusts(claim, environment) and tally.trip is None and not tally.probed and not tally.counts.moved
            for environment, tally in tallies.items()
        )

    def _judge_all(
        self, transaction: Transaction, claim: Claim, tallies: Mapping[str, Tally], waited: list[Gone]
    ) -> dict[str, Ruling]:
        """Judge what is recorded in this transaction, by environment, and act on it: trust, or pause the campaign. What
        waits for no verdict any more is added to `waited`."""
        audience = claim.campaign.audience
        if audience is not None and audience < self.thresholds.few:
            return {}
        return {
            environment: self._judge(transaction, claim, environment, tally, waited)
            for environment, tally in sorted(tallies.items())
        }

    def _judge(
        self, transaction: Transaction, claim: Claim, environment: str, tally: Tally, waited: list[Gone]
    ) -> Ruling:
        if tally.trip is not None:  # in a transaction that was rolled back
            self._trip(transaction, claim, environment, tally.trip, tally)
            return Ruling.DROP
        if not self.trusts(claim, environment):
            return self._judge_trial(transaction, claim, environment, tally, waited)
        if tally.probed or tally.counts.moved:
            moved = int(tally.counts.moved)
            known = trials.note_probes(transaction, claim.campaign.id, environment, probed=tally.probed, moved=moved)
            self._know(claim, environment, *known)
        return self._judge_window(transaction, claim, environment, tally, waited)

    def _judge_trial(
        self, transaction: Transaction, claim: Claim, environment: str, tally: Tally, waited: list[Gone]
    ) -> Ruling:
        trial = trials.add(transaction, claim, environment, tally.counts, probed=tally.probed)
        self._know(claim, environment, trial.probed, int(trial.counts.moved))
        if trial.state is TrialState.TRUSTED:  # it ended while these were under way
            self._trust(claim, environment, resumed=trial.resumed)
            return self._judge_window(transaction, claim, environment, tally, waited)
        if trial.state is TrialState.TRIPPED:
            self._stop(claim.campaign.id)
            return Ruling.DROP
        if may_be_suspicious(trial.counts, self.thresholds):
            usual = baselines.load(transaction, claim.campaign.app_id).get(environment)
            audience = claim.campaign.audience
            least = least_of(claim.campaign.estimate if audience is None else audience, self.thresholds)
            trip = assess(trial.counts, usual, self.thresholds, least=least, gone_allowed=trial.resumed)
            if trip is not None:
                self._trip(transaction, claim, environment, trip, tally)
                return Ruling.DROP
        if trial.counts.judged < self.thresholds.judged:
            return Ruling.STAGE
        waited += trust(transaction, claim.campaign.app_id, trial)
        return Ruling.APPLY

    def _judge_window(
        self, transaction: Transaction, claim: Claim, environment: str, tally: Tally, waited: list[Gone]
    ) -> Ruling:
        seen, total, recent = self._note(claim, environment, tally)
        campaign = claim.campaign
        suspicious = recent is not None and may_be_suspicious(recent, self.thresholds)
        if not suspicious and not may_be_suspicious(total, self.thresholds):
            if seen.staged:
                waited += trials.take_staged(transaction, campaign.id, environment)
                seen.staged = False
            return Ruling.APPLY
        usual = self._usual_of(transaction, campaign.app_id).get(environment)
        resumed = self._trusted.get(_key(claim, environment), False)
        tally.trip = assess(total, usual, self.thresholds, gone_allowed=resumed)
        if tally.trip is not None:
            self._trip(transaction, claim, environment, tally.trip, tally)
            return Ruling.DROP
        if recent is not None and not resumed and in_doubt(recent, usual, self.thresholds):
            seen.staged = True
            return Ruling.STAGE
        return Ruling.APPLY

    def _note(self, claim: Claim, environment: str, tally: Tally) -> tuple[_Seen, Counts, Counts | None]:
        """Put a batch into the window, once: (what was seen, the window, the newest of it when there are 410s)."""
        key = (claim.campaign.id, environment)
        with self._lock:
            seen = self._seen.get(key)
            if seen is None:
                seen = _Seen(claim.campaign.app_id, Window(self.thresholds.window), 0.0)
                self._seen[key] = seen
            if not tally.noted:
                tally.noted = True
                seen.at = time.monotonic()
                self._remember(seen.app_id, environment, seen.window.add(tally.counts))
            return seen, seen.window.total, seen.window.recent() if tally.counts.gone else None

    def _usual_of(self, transaction: Transaction, app_id: int) -> dict[str, Counts]:
        at, found = self._usual.get(app_id, (0.0, {}))
        if not at or time.monotonic() - at > BELIEVED:
            found = baselines.load(transaction, app_id)
            self._usual[app_id] = (time.monotonic(), found)
        return found

    def _trip(self, transaction: Transaction, claim: Claim, environment: str, trip: Trip, tally: Tally) -> None:
        """Pause the campaign with the diagnosis, and forget what this process saw of it."""
        campaign = claim.campaign
        self._stop(campaign.id)
        with self._lock:
            self._seen.pop((campaign.id, environment), None)
            self._trusted.pop(_key(claim, environment), None)
        if trials.trip(transaction, campaign.id, environment):
            found = diagnose(trip, evidence.gather(transaction, campaign, environment, tally.refused))
            lifecycle.pause(transaction, campaign.id, found.text)
            log.error(
                "guard_tripped",
                campaign=campaign.key,
                app=campaign.bundle_id,
                environment=environment,
                sign=trip.sign.value,
                count=int(trip.count),
                judged=int(trip.window.judged),
                cause=found.cause.value,
            )

    # --- history ----------------------------------------------------------------------------------------------------

    def flush(self, database: Database, *, everything: bool = False) -> None:
        """Write what became history: the answers that left the windows, and those of campaigns that went quiet (or
        all there are)."""
        with self._lock:
            quiet = {key: seen for key, seen in self._seen.items() if everything or time.monotonic() - seen.at > QUIET}
            for key, seen in quiet.items():
                self._remember(seen.app_id, key[1], seen.window.total)
                del self._seen[key]
            history, self._history = self._history, {}
        if not history:
            return
        try:
            for (campaign_id, environment), seen in quiet.items():
                if seen.staged:  # in doubt, and nothing came that confirmed it
                    with database.transaction() as transaction:
                        trials.apply_staged(transaction, campaign_id, environment)
            with database.transaction() as transaction:
                for app_id, counts in sorted(history.items()):
                    baselines.add(transaction, app_id, counts)
        except BaseException:
            with self._lock:
                for app_id, counts in history.items():
                    for environment, found in counts.items():
                        self._remember(app_id, environment, found)
            raise

    def _remember(self, app_id: int, environment: str, counts: Counts) -> None:
        if counts.judged:
            known = self._history.setdefault(app_id, {})
            known[environment] = known.get(environment, Counts()) + counts


def thresholds_of(settings: Settings) -> Thresholds:
    """The guard's thresholds as they are set."""
    return Thresholds(
        outstanding=settings.guard_outstanding,
        judged=settings.guard_judged,
        window=settings.guard_window,
        share=settings.guard_share,
        times=settings.guard_times,
        most_share=settings.guard_most_share,
        gone_share=settings.guard_gone_share,
        history=settings.guard_history,
    )


def _key(claim: Claim, environment: str) -> tuple[int, str, int]:
    return claim.campaign.id, environment, claim.campaign.epoch
