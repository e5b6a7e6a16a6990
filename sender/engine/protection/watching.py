"""The watcher of a worker process: counts what its connections and answers say of each credential, and opens breakers
or changes paces by it. Works only while there is something to send."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import structlog

from sender.engine.leases import lease_clock
from sender.engine.mishaps import survived
from sender.engine.protection.breaker import Breakers, log_opened
from sender.engine.protection.window import EXCUSED, INTERVAL, LINGER, STOOD_STILL, Window
from sender.model import ACCEPTED, Answer, NotProcessed, Rejected, Unknown
from sender.policy.breaker import Signal, Tally, Verdict
from sender.store import breakers
from sender.store.batches import Target
from sender.store.breakers import Breaker
from sender.store.database import Database, Transaction

if TYPE_CHECKING:
    from sender.apns.health import Health

log = structlog.get_logger()

#: Seconds between two log events of a pace that climbs.
SAY_EVERY = 10.0


_environment = attrgetter("environment")


class Watcher:
    """Feeds what this process sees into the breakers."""

    def __init__(
        self,
        database: Database,
        known: Breakers,
        *,
        timeout: float,
        busy: Callable[[], bool],
        health: Callable[[], Mapping[str, Health]],
        revive: Callable[[str], None],
    ) -> None:
        self._database, self._breakers = database, known
        self._timeout = timeout  # seconds that a push has for its answer
        self._busy, self._health, self._revive = busy, health, revive
        self._lock = threading.Lock()
        self._noted: dict[str, Tally] = {}
        self._windows: dict[str, Window] = {}
        self._said: dict[str, float] = {}
        self._quiet_after = 0.0
        self._excused_until = 0.0  # until then what this process missed by itself comes to light (lease clock)

    def note(self, identities: Mapping[str, str], targets: Sequence[Target], answers: Sequence[Answer | None]) -> None:
        """Count the answers of a batch; `identities`: of its credentials, by environment.

        Devices that had trouble before are left out of the shares: a retry of those that APNs throttles gets nothing
        but 429s, which says nothing of the credential.
        """
        judged = Counter(map(_environment, targets))
        odd: list[int] = []
        if answers.count(ACCEPTED) < len(answers):
            odd = [at for at, answer in enumerate(answers) if answer is not ACCEPTED]
        bad: Counter[tuple[str, str]] = Counter()
        for at in odd:
            what = _said(targets[at], answers[at])
            if what is None:
                judged[targets[at].environment] -= 1
            elif what:
                bad[targets[at].environment, what] += 1
        with self._lock:
            for environment, count in judged.items():
                tally = Tally(judged=count, unavailable=bad[environment, "5xx"], throttled=bad[environment, "429"])
                identity = identities[environment]
                self._noted[identity] = self._noted.get(identity, Tally()) + tally

    def cannot_connect(self, identity: str) -> bool:
        """Whether this process could not connect with a credential when it was last looked at."""
        window = self._windows.get(identity)
        return window is not None and window.down

    def run(self, closing: threading.Event) -> None:
        """Look again and again until `closing` is set."""
        while not self._wait(closing):
            if self._busy():
                self._quiet_after = time.monotonic() + LINGER
            elif time.monotonic() > self._quiet_after:
                continue
            with survived("watching"):
                self.look()

    def _wait(self, closing: threading.Event) -> bool:
        """Wait for the next look; whether it is closing time."""
        since = lease_clock()
        closed = closing.wait(INTERVAL)
        late = lease_clock() - since - INTERVAL
        if late > STOOD_STILL:
            log.warning("process_stood_still", seconds=round(late, 1))
            self._excused_until = lease_clock() + EXCUSED
        return closed

    def look(self) -> None:
        """One look: count, judge, act, and read what the others did."""
        health = self._health()
        with self._lock:
            noted, self._noted = self._noted, {}
        identities = sorted({*health, *noted, *self._windows})
        if not identities:
            return
        excused = lease_clock() < self._excused_until
        for identity in identities:
            window = self._windows.setdefault(identity, Window())
            window.add(health.get(identity), noted.get(identity, Tally()), excused=excused)
        with self._database.transaction() as transaction:
            known = self._breakers.read(transaction, identities)
        for identity in self._breakers.closed_again():
            if identity in self._windows:
                self._windows[identity].begin_after_rest(self._timeout)
            self._revive(identity)
        for identity in identities:
            self._act(identity, known.get(identity, Breaker(credential=identity)))

    def _act(self, identity: str, known: Breaker) -> None:
        window = self._windows[identity]
        if not known.closed:
            window.forget()  # what fails while it is open is no news
            return
        before = window.alone
        signal = window.judge(known)
        if window.alone and not before:
            log.warning("connecting_fails_here", credential=identity, cause=window.cause)
        if signal.verdict is Verdict.FINE and (known.pace is None or not window.busy):
            return
        with self._database.transaction() as transaction:
            match signal.verdict:
                case Verdict.OPEN:
                    self._open(transaction, identity, signal)
                case Verdict.SLOW:
                    self._slow_down(transaction, known, signal)
                case Verdict.FINE:
                    self._speed_up(transaction, known)
            self._breakers.read(transaction, [identity])
        if signal.verdict is not Verdict.FINE:
            window.forget()

    def _open(self, transaction: Transaction, identity: str, signal: Signal) -> None:
        opening = self._breakers.opening(signal.cause, measured=self._windows[identity].best)
        opened = breakers.trip(transaction, identity, opening)
        if opened is not None:
            log_opened(opened)

    def _slow_down(self, transaction: Transaction, known: Breaker, signal: Signal) -> None:
        identity = known.credential
        slowed = breakers.slow_down(transaction, identity, measured=self._windows[identity].rate(), cause=signal.cause)
        if slowed is not None and slowed.pace != known.pace:  # at the floor it stays there
            log.warning("pace_lowered", credential=identity, pace=slowed.pace, cause=signal.cause)

    def _speed_up(self, transaction: Transaction, known: Breaker) -> None:
        if not breakers.speed_up(transaction, known):
            return
        now, identity = time.monotonic(), known.credential
        reached = breakers.read(transaction, [identity]).get(identity)
        if reached is None or reached.pace is None:
            log.info("pace_restored", credential=identity)
        elif now - self._said.get(identity, -SAY_EVERY) >= SAY_EVERY:
            self._said[identity] = now
            log.info("pace_raised", credential=identity, pace=reached.pace, top=reached.pace_top)


def _said(target: Target, answer: Answer | None) -> str | None:
    """What one answer that was no plain success says of the credential: "5xx", "429", nothing bad (""), or nothing."""
    if answer is None or isinstance(answer, NotProcessed | Unknown) or target.attempts or target.blocklisted_times:
        return None
    if not isinstance(answer, Rejected):
        return ""
    if answer.status >= 500:
        return "5xx"
    return "429" if answer.status == 429 and answer.reason in ("TooManyRequests", "") else ""
