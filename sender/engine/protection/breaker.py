"""What this process knows of the breakers and paces of its credentials, and the single probes that it may send.

PostgreSQL has the truth (`store.breakers`). It is read with every claim and, while there are claims, twice a second
by the watcher (`engine.watching`); whoever issues asks here, which costs a look into a dictionary.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from sender.model import Answer, Rejected
from sender.policy.breaker import (
    PROBE_PATIENCE,
    PROVIDER_TOKEN_HOLD,
    clears,
    concerns_device,
    open_seconds,
    overtaken,
)
from sender.policy.states import BreakerState
from sender.store import breakers
from sender.store.breakers import Breaker, Opening
from sender.store.database import Database, Transaction
from sender.store.limits import Limit

log = structlog.get_logger()

#: Seconds for which a batch that is not served at a lowered pace is left alone, at the most.
LONGEST_TURN = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The right to send one push with a credential that rests."""

    identity: str
    owner: UUID  # of the claim that sends it
    until: datetime  # by the database's clock: what the compare-and-set at its end asks for


class Breakers:
    """The breakers of a process's credentials, by identity. Safe to use from any thread."""

    def __init__(self, database: Database, *, scale: float, probe_seconds: float) -> None:
        self._database = database
        self.scale = scale
        self._probe_seconds = probe_seconds
        self._lock = threading.Lock()
        self._known: dict[str, Breaker] = {}  # those that are not plain
        self._ready_at: dict[str, float] = {}  # of those that are not closed: when a probe may be asked for (monotonic)
        self._probes: dict[str, Probe] = {}
        self._closed_again: set[str] = set()
        self._overtaken: set[str] = set()  # those whose last probe said nothing

    #: Seconds from now in which a probe may be asked for already: clocks differ a little.
    SOON = 0.05

    # --- what whoever issues asks -----------------------------------------------------------------------------------

    @property
    def any_shut(self) -> bool:
        """Whether there is any credential that nothing may be sent with."""
        return bool(self._ready_at)

    def rests(self, identity: str) -> bool:
        """Whether nothing may be sent with a credential, and it is not time for a probe."""
        return identity in self._ready_at and self.rest(identity) > self.SOON

    def shuts(self, identity: str) -> bool:
        """Whether nothing may be sent with a credential but a probe."""
        return identity in self._ready_at

    def allows(self, identity: str, owner: UUID) -> bool:
        """Whether a claim may send with a credential: its breaker is closed, or the claim has the probe."""
        if identity not in self._ready_at:
            return True
        return self.probes(identity, owner)

    def probes(self, identity: str, owner: UUID) -> bool:
        """Whether a claim has the probe of a credential."""
        probe = self._probes.get(identity)
        return probe is not None and probe.owner == owner

    def pace(self, identity: str) -> Sequence[Limit]:
        """The adaptive pace as a limit; none in the ordinary case."""
        known = self._known.get(identity)
        if known is None or known.pace is None:
            return ()
        return (Limit(scope=f"credential:{identity}", rate=known.pace),)

    def turn_of(self, identity: str, pushes: int) -> float:
        """Seconds before a batch is worth claiming again that found others before it at a credential's pace."""
        known = self._known.get(identity)
        if known is None or known.pace is None:
            return 0.0
        return min(LONGEST_TURN, pushes / known.pace) * (0.5 + random.random() / 2)  # noqa: S311

    def rest(self, identity: str) -> float:
        """Seconds before it is worth trying again with a credential; 0 when its breaker is closed."""
        known, ready_at = self._known.get(identity), self._ready_at.get(identity)
        if known is None or ready_at is None:
            return 0.0
        left = ready_at - time.monotonic()
        if known.state is BreakerState.HALF_OPEN:
            left = min(left, self.patience())
        return max(left, self.SOON)

    # --- what the database says -------------------------------------------------------------------------------------

    def read(self, transaction: Transaction, identities: Collection[str]) -> dict[str, Breaker]:
        """Read the breakers of these credentials and remember them; those that are plain are left out."""
        found = {
            identity: breaker
            for identity, breaker in breakers.read(transaction, identities).items()
            if not breaker.plain
        }
        self._learn(identities, found)
        return found

    def holds(self, transaction: Transaction, identities: Collection[str]) -> dict[str, datetime]:
        """Which of these credentials must rest, and until when. One whose rest is over is not among them: whoever
        issues with it asks for the probe."""
        held = {}
        for identity, breaker in self.read(transaction, identities).items():
            if breaker.closed or breaker.until is None or not breaker.wait:
                continue
            now = breaker.until - timedelta(seconds=breaker.wait)
            left = breaker.wait if breaker.state is BreakerState.OPEN else min(breaker.wait, self.patience())
            held[identity] = now + timedelta(seconds=left)
        return held

    def closed_again(self) -> set[str]:
        """The credentials whose breakers closed since this was last asked."""
        with self._lock:
            found, self._closed_again = self._closed_again, set()
        return found

    # --- probes -----------------------------------------------------------------------------------------------------

    def begin_probe(self, identity: str, owner: UUID) -> bool:
        """Take the right to send one probe, if it is time and nobody else has it."""
        with self._database.transaction() as transaction:
            taken = breakers.begin_probe(transaction, identity, seconds=self._probe_seconds)
            if taken is None or taken.until is None:
                self.read(transaction, [identity])
                return False
        with self._lock:
            self._probes[identity] = Probe(identity=identity, owner=owner, until=taken.until)
        self._learn([identity], {identity: taken})
        log.info("breaker_half_opened", credential=identity, cause=taken.cause, openings=taken.trips)
        return True

    def end_probe(self, identity: str, answer: Answer | None, *, throttled: bool = False) -> None:
        """Close the breaker, or open it again, by the probe's answer (None: it was not sent, because its claim had to
        stop). `throttled`: to a device that was throttled before, whose being so again says nothing."""
        void = answer is None or overtaken(answer)
        with self._lock:
            probe = self._probes.pop(identity, None)
            again = void and identity in self._overtaken  # as where every connection is closed in order at once
            self._overtaken = self._overtaken | {identity} if void else self._overtaken - {identity}
        if probe is None:
            return
        with self._database.transaction() as transaction:
            if answer is None or void:
                seconds = self.patience() if again else 0.0
                breakers.give_back_probe(transaction, identity, probe.until, seconds=seconds)
            elif throttled and concerns_device(answer):
                breakers.give_back_probe(transaction, identity, probe.until, seconds=self._same_again(identity))
            elif clears(answer):
                if breakers.close_one(transaction, identity, until=probe.until):
                    log.info("breaker_closed", credential=identity, by="probe")
            else:
                opened = breakers.fail_probe(transaction, identity, self._failed(answer), probe.until)
                if opened is not None:
                    log_opened(opened)
            self.read(transaction, [identity])

    def _same_again(self, identity: str) -> float:
        known = self._known.get(identity)
        return open_seconds(known.trips if known else 1, random.random(), scale=self.scale)  # noqa: S311

    def _failed(self, answer: Answer) -> Opening:
        said = answer.reason or str(answer.status) if isinstance(answer, Rejected) else getattr(answer, "cause", "")
        at_least = PROVIDER_TOKEN_HOLD * self.scale if said == "TooManyProviderTokenUpdates" else 0.0
        return self.opening(f"the probe failed: {said}", at_least=at_least)

    def opening(self, cause: str, *, measured: float = 0.0, at_least: float = 0.0) -> Opening:
        """An opening as these settings have it."""
        chance = random.random()  # noqa: S311
        return Opening(cause=cause, chance=chance, scale=self.scale, measured=measured, at_least=at_least)

    def patience(self) -> float:
        """Seconds to leave to whoever has the probe, or can connect."""
        return max(0.2, PROBE_PATIENCE * self.scale) * (0.5 + random.random() / 2)  # noqa: S311

    def _learn(self, identities: Collection[str], found: Mapping[str, Breaker]) -> None:
        now = time.monotonic()
        with self._lock:
            for identity in identities:
                breaker = found.get(identity)
                if breaker is None:
                    self._known.pop(identity, None)
                else:
                    self._known[identity] = breaker
                if breaker is None or breaker.closed:
                    if self._ready_at.pop(identity, None) is not None:
                        self._closed_again.add(identity)
                else:
                    self._ready_at[identity] = now + breaker.wait


def log_opened(opened: Breaker) -> None:
    """Say that a breaker opened."""
    log.warning(
        "breaker_opened",
        credential=opened.credential,
        cause=opened.cause,
        seconds=round(opened.wait, 1),
        until=opened.until and opened.until.isoformat(timespec="seconds"),
        openings=opened.trips,
    )
