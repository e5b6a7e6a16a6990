"""The connections of one credential in one environment: opened gradually, chosen by load, replaced with back-off.

Builds on aioapns's pool. Overridden, and why: `acquire` (its waiters hang when a connection is lost, and it polls),
`create_connection` (a handshake without a limit, under the pool's lock), `discard_connection` (raises the second time)
and `send_notification` (sends again by itself when a connection is lost: duplicates).
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

from aioapns.common import NotificationRequest, NotificationResult
from aioapns.connection import APNsBaseConnectionPool

from sender.apns.attempts import LONGEST_PAUSE, PATIENCE, Attempts
from sender.apns.batch import Batch, Slot
from sender.apns.dial import ConnectError
from sender.apns.health import Health
from sender.apns.vocabulary import push_of, result_of
from sender.apns.wire import Wire
from sender.model import Answer, NotProcessed, Rejected
from sender.policy.outcomes import CONNECTION_ENDS

#: A connection that was lost sooner without having answered anything counts as a failure.
USEFUL_AFTER = 10.0
#: Seconds for which pushes wait for streams before another connection is opened.
CROWDED_FOR = 0.1
#: Pushes that wait for a stream: more than this and `ready` makes the caller wait, and far more are turned away.
BACKLOG = 256
LARGEST_BACKLOG = 20_000

#: Why a push that was taken back before it was written was not processed.
RECALLED = "recalled"

Dial = Callable[[Callable[[], Wire]], Any]
Report = Callable[[str, dict[str, Any]], None]


class WirePool(APNsBaseConnectionPool):
    """Takes slots (a batch and a place in it), and sees to it that each is on a connection once, or is given back."""

    connections: list[Wire]  # type: ignore[assignment]
    protocol_class: type[Wire]

    def __init__(
        self, *, dial: Dial, authority: str, auth_provider: Any, most: int, timeout: float, report: Report
    ) -> None:
        super().__init__(max_connections=most, max_connection_attempts=1)
        self.protocol_class = Wire  # only after construction: the parent sets its own
        self.counts: Counter[str] = Counter()
        self.last_cause = ""
        self.closing = False
        self._dial, self._authority, self._auth_provider = dial, authority, auth_provider
        self._timeout = timeout
        self._report = report
        self._attempts = Attempts(self.loop)
        self._backlog: deque[Slot] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._draining: set[Wire] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._first_settings: dict[Wire, asyncio.Future[None]] = {}
        self._born: dict[Wire, float] = {}
        self._answered = 0  # on connections that are gone
        self._unreachable_since: float | None = None
        self._no_more_until = 0.0
        self._crowded_since: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._watch_is_slow = True

    # --- what the client asks ---------------------------------------------------------------------------------------

    def submit(self, slots: Iterable[Slot], count: int) -> None:
        """Put the slots on connections, or let them wait for one. Turns them away when it cannot connect."""
        if self.closing:
            _turn_away(slots, "closed")
        elif self.down and self._connecting is None and not self._attempts.due:
            _turn_away(slots, f"connect: {self.last_cause}")
        elif len(self._backlog) + count > LARGEST_BACKLOG:
            _turn_away(slots, "too many pushes are waiting: await ready() before send()")
        else:
            self._backlog.extend(slots)
            self._dispatch()
            self._watch_closely()

    async def ready(self) -> None:
        """Wait until little is waiting; returns at once while it cannot connect."""
        while not self.closing and not self.down and len(self._backlog) >= self._threshold():
            waiter = self.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    async def connected(self) -> None:
        """Wait until there is a connection; returns at once while it cannot connect."""
        while not self.closing and not self.down and not any(wire.accepting for wire in self.connections):
            self._grow(wanted=True)
            waiter = self.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    @property
    def down(self) -> bool:
        """It could not connect several times in a row, and has no connection."""
        return self._attempts.hopeless and not any(wire.accepting for wire in self.connections)

    @property
    def health(self) -> Health:
        """How it is now."""
        return Health(
            connections=len(self.connections),
            draining=len(self._draining),
            in_flight=sum(wire.in_flight for wire in (*self.connections, *self._draining)),
            backlog=len(self._backlog) + sum(wire.load - wire.in_flight for wire in self.connections),
            stream_limit=sum(wire.limit for wire in self.connections),
            down=self.down,
            failures_in_a_row=self._attempts.failures,
            last_cause=self.last_cause,
            answered=self._answered + sum(wire.answered for wire in (*self.connections, *self._draining)),
            unreachable_for=0.0 if self._unreachable_since is None else self.loop.time() - self._unreachable_since,
            counts=dict(self.counts),
        )

    def expire(self, batch: Batch) -> None:
        """The batch's deadline has come: settle it wherever it is."""
        open_before = batch.remaining
        for wire in (*self.connections, *self._draining):
            wire.expire(batch)
        self.counts["unanswered"] += open_before - batch.remaining
        if any(slot[0] is batch for slot in self._backlog):
            self._backlog = deque(slot for slot in self._backlog if slot[0] is not batch)
            why = f"connect: {self.last_cause}" if self._attempts.failures else "timeout: never written"
            batch.settle_rest(NotProcessed(cause=why))
        self._wake()

    def recall(self, batches: Collection[Batch]) -> int:
        """Give back what was not written yet of these batches; returns how many pushes that were."""
        found = [slot for wire in self.connections for slot in wire.recall(batches)]
        if any(slot[0] in batches for slot in self._backlog):
            found += [slot for slot in self._backlog if slot[0] in batches]
            self._backlog = deque(slot for slot in self._backlog if slot[0] not in batches)
        _turn_away(found, RECALLED)
        self._wake()
        return len(found)

    def revive(self) -> None:
        """Let the next push try to connect, however often that failed before."""
        self._attempts.revive()

    def renew(self, cause: str) -> None:
        """Have what comes next go out on new connections; what is in flight is answered on the old ones."""
        for wire in list(self.connections):
            wire.retire(cause)

    def stop_issuing(self) -> None:
        """Give back everything that was not written, and take nothing more."""
        self.closing = True
        for wire in list(self.connections):
            wire.retire("closed")
        self._flush_backlog("closed")

    def close(self) -> None:
        """Close all connections; what is in flight becomes unknown."""
        self.stop_issuing()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._watch is not None:
            self._watch.cancel()
        for wire in (*self.connections, *self._draining):
            wire.close()

    # --- aioapns's contract -----------------------------------------------------------------------------------------

    async def create_connection(self) -> Wire:
        """Connect and wait for the peer's SETTINGS, in a limited time. Raises `ConnectError`."""
        factory = partial(self.protocol_class, self.apns_topic or "", self.loop, None, self._auth_provider)
        deadline = self.loop.time() + self._timeout
        wire: Wire = await self._dial(factory)
        wire.authority = self._authority
        wire.watcher = self
        settings = self._first_settings[wire] = self.loop.create_future()
        if wire.lost:
            self._first_settings.pop(wire)
            raise ConnectError(f"the server closed the connection in the handshake ({wire.cause})")
        try:
            async with asyncio.timeout_at(deadline):
                if not wire.settled:
                    await settings
        except TimeoutError:
            wire.abort("no SETTINGS")
            raise ConnectError(f"the server sent no HTTP/2 SETTINGS within {self._timeout:g} s") from None
        except asyncio.CancelledError:
            wire.abort("closed")
            raise
        finally:
            self._first_settings.pop(wire, None)
        return wire

    async def acquire(self) -> Wire:
        """A connection with room, the one with the least load. Raises `ConnectError` when it cannot connect."""
        while True:
            wire = self._least_loaded()
            if wire is not None:
                return wire
            if self.closing or (self.down and not self._attempts.due):
                raise ConnectError(self.last_cause or "closed")
            self._grow(wanted=len(self.connections) < self.max_connections)
            waiter = self.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def discard_connection(self, connection: Any) -> None:
        """Forget a connection; also one that is forgotten already."""
        if connection in self.connections:
            self.connections.remove(connection)
        self._draining.discard(connection)
        if self._born.pop(connection, None) is not None:
            self._answered += connection.answered

    async def send_notification(self, request: NotificationRequest) -> NotificationResult:
        """One notification, in aioapns's vocabulary, sent once. Raises aioapns's `ConnectionClosed` without answer."""
        done: asyncio.Future[Answer | None] = self.loop.create_future()
        batch = Batch(
            [push_of(request, self.apns_topic or "")],
            self.loop.time() + self._timeout,
            lambda batch: None if done.done() else done.set_result(batch.answers[0]),
        )
        timer = self.loop.call_at(batch.deadline, self.expire, batch)
        try:
            self.submit([(batch, 0)], 1)
            return result_of(request, await done)
        finally:
            timer.cancel()

    # --- what the wires tell ----------------------------------------------------------------------------------------

    def wire_settings(self, wire: Wire) -> None:
        """See `Watcher`."""
        first = self._first_settings.get(wire)
        if first is not None and not first.done():
            first.set_result(None)
        if wire.answered and wire.limit < wire.limit_before:
            self.counts["limit_falls"] += 1

    def wire_room(self, wire: Wire) -> None:
        """See `Watcher`."""
        if self._attempts.failures and wire.answered:
            self._attempts.failures = 0
            self.revive()
        if self._backlog and wire in self._born:
            self._dispatch()
        elif self._waiters:
            self._wake()

    def wire_rejected(self, wire: Wire, answer: Rejected) -> None:
        """See `Watcher`."""
        self.counts["rejected"] += 1
        if answer.reason == "TooManyProviderTokenUpdates":
            freeze = getattr(self._auth_provider, "freeze", None)
            if freeze is not None:
                freeze()
        if answer.reason in CONNECTION_ENDS and self.loop.time() - self._born.get(wire, math.inf) >= USEFUL_AFTER:
            wire.retire(answer.reason)  # a new one that says so is kept: the next would say the same

    def wire_refused(self, wire: Wire) -> None:
        """See `Watcher`."""
        self.counts["refused"] += 1

    def wire_retired(self, wire: Wire, cause: str) -> None:
        """See `Watcher`."""
        if cause.startswith("goaway"):
            self.counts["goaways"] += 1
            self.counts["goaway_errors"] += wire.goaway_error
            self.last_cause = cause
        self._report(
            "apns_connection_retired", {"cause": cause, "in_flight": wire.in_flight, "answered": wire.answered}
        )
        if wire in self.connections:
            self.connections.remove(wire)
            self._draining.add(wire)
            if wire.goaway and self._useless(wire):
                self._attempts.fail()  # taken back with its first answer (`wire_room`), a failure when it never has one
        self._dispatch()

    def wire_returned(self, wire: Wire, slots: Sequence[Slot]) -> None:
        """See `Watcher`: they were never written, so that another connection may send them."""
        waiting = [slot for slot in slots if slot[0].answers[slot[1]] is None]
        if self.closing:
            _turn_away(waiting, "closed")
        else:
            self._backlog.extendleft(reversed(waiting))

    def wire_lost(self, wire: Wire, cause: str) -> None:
        """See `Watcher`."""
        first = self._first_settings.get(wire)
        if first is not None:
            if not first.done():
                first.set_exception(ConnectError(f"the server closed the connection in the handshake ({cause})"))
            return
        if wire in self._draining and wire.goaway and self._useless(wire):
            self.counts["failures"] += 1
        if wire.silent:  # sooner than their deadlines, and the same to whoever judges it
            self.counts["unanswered"] += wire.unanswered_at_loss
        if wire in self.connections:
            self.counts["lost"] += 1
            self.counts["broken"] += not self.closing and wire.unanswered_at_loss > 0
            self.last_cause = cause
            self._report("apns_connection_lost", {"cause": cause, "answered": wire.answered})
            if self._useless(wire):
                self._count_failure(wire)
        self.discard_connection(wire)
        self._dispatch()

    # --- handing out ------------------------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Hand waiting slots to the connections with the least load; open another one when there are too few."""
        if self._backlog and self.down and self._connecting is None and not self._attempts.due:
            self._flush_backlog(f"connect: {self.last_cause}")
        backlog = self._backlog
        while backlog:
            wire = self._least_loaded()
            if wire is None:
                break
            share = -(-len(backlog) // len(self.connections))
            count = min(wire.room, max(share, 16), len(backlog))
            wire.enqueue([backlog.popleft() for _ in range(count)])
        if backlog:
            self._grow()
        else:
            self._crowded_since = None
        self._wake()

    def _least_loaded(self) -> Wire | None:
        best, least = None, 0
        for wire in self.connections:
            if wire.room and (best is None or wire.load < least):
                best, least = wire, wire.load
        return best

    def _threshold(self) -> int:
        return max(1, min(BACKLOG, sum(wire.limit for wire in self.connections) // 2))

    def _wake(self) -> None:
        if self._waiters and (self.closing or self.down or len(self._backlog) < self._threshold()):
            waiters, self._waiters = self._waiters, deque()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _flush_backlog(self, cause: str) -> None:
        slots, self._backlog = self._backlog, deque()
        _turn_away(slots, cause)
        self._wake()

    # --- connecting -------------------------------------------------------------------------------------------------

    def _grow(self, *, wanted: bool = False) -> None:
        """Open a connection when there is none, or when all have been full for a while: one at a time."""
        if self._connecting is None and not self.closing and (not self.connections or wanted or self._crowded()):
            self._connecting = self.loop.create_task(self._connect())

    def _crowded(self) -> bool:
        """Every connection has been full for a while. A limit of 1 is a sign of blocking: more would make it worse."""
        if len(self.connections) >= self.max_connections or not all(wire.full for wire in self.connections):
            self._crowded_since = None
            return False
        now = self.loop.time()
        if self._crowded_since is None:
            self._crowded_since = now
        return now - self._crowded_since >= CROWDED_FOR and now >= self._no_more_until

    async def _connect(self) -> None:
        """Try until there is a connection, or patience ends; then whatever waits is turned away."""
        self._unreachable_since = None if self.connections else self.loop.time()
        try:
            while not self.closing:
                await self._attempts.begin()
                try:
                    wire = await self.create_connection()
                except ConnectError as error:
                    self._fail(error)
                    self._no_more_until = self.loop.time() + LONGEST_PAUSE
                    if self.down or self.connections or not self._backlog:
                        break
                else:
                    self._join(wire)
                    break
        finally:
            self._connecting = None
        if self.down and self._backlog:
            self._flush_backlog(f"connect: {self.last_cause}")
        self._dispatch()

    def _join(self, wire: Wire) -> None:
        self.counts["connects"] += 1
        self._crowded_since = None
        if wire.lost or not wire.accepting:
            self.last_cause = wire.cause
            self._count_failure(wire)
            return
        self.connections.append(wire)
        self._unreachable_since = None
        self._born[wire] = self.loop.time()
        self._report("apns_connected", {"connections": len(self.connections), "stream_limit": wire.limit})
        self._watch_closely()

    def _fail(self, error: ConnectError) -> None:
        self.last_cause = str(error)
        self.counts["failures"] += 1
        self._attempts.fail(PATIENCE if error.lasting else 1)
        self._report("apns_connect_failed", {"cause": self.last_cause, "failures": self._attempts.failures})

    def _useless(self, wire: Wire) -> bool:
        """Whether it ends young, before it answered anything: no better than an attempt that failed."""
        return not wire.answered and self.loop.time() - self._born.get(wire, 0.0) < USEFUL_AFTER

    def _count_failure(self, wire: Wire) -> None:
        """A connection that ended before it answered anything is as good as none."""
        self.counts["failures"] += 1
        self._attempts.fail()

    # --- watching ---------------------------------------------------------------------------------------------------

    def _watch_closely(self) -> None:
        if self._watch is None or self._watch_is_slow:
            if self._watch is not None:
                self._watch.cancel()
            self._watch_is_slow = False
            self._watch = self.loop.call_later(1.0, self._look)

    def _look(self) -> None:
        """Every second while there is work, else every minute: is each peer still there?"""
        now = self.loop.time()
        wires = (*self.connections, *self._draining)
        for wire in wires:
            wire.check(now)
        if self._backlog:
            self._dispatch()
        self._watch_is_slow = not self._backlog and not any(wire.load for wire in wires)
        self._watch = self.loop.call_later(60.0 if self._watch_is_slow else 1.0, self._look) if wires else None


def _turn_away(slots: Iterable[Slot], cause: str) -> None:
    answer = NotProcessed(cause=cause)
    for batch, place in slots:
        batch.settle(place, answer)
