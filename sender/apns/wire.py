"""One HTTP/2 connection to APNs on libnghttp2, as a protocol class for aioapns's connection pools. No policy in it.

It keeps its own queue and never submits beyond the peer's stream limit: libnghttp2 would queue silently, give no event
for the reset of a queued stream, and close queued streams only when a connection that got GOAWAY has drained. What it
learns after receiving and after flushing are events; each ends in exactly one answer per push:

    response complete, or cut short after its status   Accepted or Rejected, by the status
    RST_STREAM(REFUSED_STREAM), or above GOAWAY's last stream id   NotProcessed
    any other reset, connection lost, deadline         Unknown
    never written                                      back to the watcher, or NotProcessed

RFC 9113; Apple, "Sending notification requests to APNs" and "Handling notification responses from APNs".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

from aioapns.common import NotificationRequest, NotificationResult
from aioapns.connection import APNsTLSClientProtocol, AuthorizationHeaderProvider
from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    ErrorCode,
    Event,
    GoAwayReceived,
    Header,
    NeverIndexedHeader,
    NGH2Error,
    PingAcknowledged,
    ResponseReceived,
    Role,
    Setting,
    SettingsReceived,
    StreamClosed,
    WindowUpdated,
)

from sender.apns.batch import Batch, Slot
from sender.apns.blocks import APNS_ID, PATH, HeaderBlocks
from sender.apns.replies import Reply, accepted, at_its_own_ends, describe, error_name, parse_goaway, parse_headers
from sender.apns.vocabulary import push_of, result_of
from sender.apns.watcher import Watcher
from sender.model import ACCEPTED, Answer, NotProcessed, PushHeaders, Rejected, Unknown

_CONFIGURATION = Configuration(
    peer_max_concurrent_streams=1, max_inbound_header_list_size=16_384, max_inbound_header_count=64
)
_STATUS_OK = (b":status", b"200")


class Wire(APNsTLSClientProtocol):
    """An HTTP/2 connection. The parent's `__init__` is skipped: it builds an h2 connection and a 10-second idle timer.

    `watcher` may be set after construction; without one, aioapns's own pools can use the class.
    """

    MOST_STREAMS = 2000  # used of a limit that is higher, or not stated
    MOST_QUEUED = 256  # handed over and not yet written: enough for one turn of the event loop
    MOST_CANCELLED = (
        100  # deadlines missed before the connection is retired; libnghttp2 ends it after 10,000 late frames
    )
    STALLED = 10.0  # seconds without a byte, while requests wait, before a PING asks whether the peer is there
    PING_TIMEOUT = 10.0  # seconds for its acknowledgement before the peer counts as dead
    IDLE_PING = 3600.0  # seconds between PINGs on an idle connection: Apple asks for no more than one an hour

    def __init__(
        self,
        apns_topic: str,
        loop: asyncio.AbstractEventLoop | None = None,
        on_connection_lost: Callable[[Any], Any] | None = None,
        auth_provider: AuthorizationHeaderProvider | None = None,
    ) -> None:
        self.apns_topic = apns_topic
        self.loop = loop or asyncio.get_running_loop()
        self.on_connection_lost = on_connection_lost
        self.auth_provider = auth_provider
        self.transport: asyncio.Transport | None = None
        self.watcher: Watcher | None = None
        self.answered = 0
        self.cancelled = 0
        self.cause = ""  # why it takes no more requests, or is gone
        self.accepting = False
        self.lost = False
        self._connection = Connection(Role.CLIENT, _CONFIGURATION)
        self._queue: deque[Slot] = deque()
        self._streams: dict[int, Slot | Reply] = {}
        self._limit = 1  # until the peer's SETTINGS
        self.settled = False  # SETTINGS came
        self.limit_before = 1  # the limit until the last SETTINGS
        self.goaway = ""  # what the peer's GOAWAY said
        self.goaway_error = False  # it was for an error, not for the peer's own ends
        self.unanswered_at_loss = 0  # requests that were in flight when the connection broke
        self.silent = False  # it was given up since the peer answered nothing, not even a PING
        self._paused = False
        self._flushing = False
        self._blocks = HeaderBlocks(str(self.APNS_SERVER), auth_provider)
        self._heard = self._pinged = 0.0
        self._ping_open = False

    # --- what the owner asks ----------------------------------------------------------------------------------------

    @property
    def authority(self) -> str:
        """The host that requests name."""
        return self._blocks.authority

    @authority.setter
    def authority(self, authority: str) -> None:
        self._blocks.authority = authority

    @property
    def load(self) -> int:
        """Requests in flight or queued."""
        return len(self._streams) + len(self._queue)

    @property
    def in_flight(self) -> int:
        """Streams that are open."""
        return len(self._streams)

    @property
    def limit(self) -> int:
        """Streams that the peer allows, as far as they are used."""
        return self._limit

    @property
    def room(self) -> int:
        """Requests that may be handed over now."""
        if not self.accepting or self._paused:
            return 0
        queued = len(self._queue)
        return max(0, min(self._limit - len(self._streams), self.MOST_QUEUED) - queued)

    @property
    def is_busy(self) -> bool:
        """What aioapns's pools ask before they choose a connection."""
        return self.room <= 0

    @property
    def full(self) -> bool:
        """Every stream that the peer allows is taken, and the connection has proved itself."""
        return self.answered > 0 and self.load >= self._limit > 1

    def enqueue(self, slots: Iterable[Slot]) -> None:
        """Take the requests over; they are written at the end of this turn of the event loop."""
        self._queue.extend(slots)
        if self.transport is not None and not self.accepting:
            self._give_back()
        self._schedule_flush()

    def expire(self, batch: Batch) -> None:
        """The batch's deadline has come: settle what it has here, and cancel its streams."""
        for stream_id, entry in self._streams.items():
            if isinstance(entry, Reply):
                if entry.batch is batch:
                    self._cancel(stream_id, batch, entry.place, entry.answer())
            elif entry[0] is batch:
                self._cancel(stream_id, batch, entry[1], Unknown(cause="timeout"))
        for _, place in self.recall((batch,)):  # and only those: another connection may have written its own
            batch.settle(place, NotProcessed(cause="timeout: never written"))
        if self.cancelled >= self.MOST_CANCELLED:
            self.retire(f"{self.cancelled} requests were not answered in time")
        self._schedule_flush()

    def recall(self, batches: Collection[Batch]) -> list[Slot]:
        """Take back what is queued of these batches and was never written; the rest keeps its order."""
        if not any(slot[0] in batches for slot in self._queue):
            return []
        found = [slot for slot in self._queue if slot[0] in batches]
        self._queue = deque(slot for slot in self._queue if slot[0] not in batches)
        return found

    def retire(self, cause: str) -> None:
        """Take no more requests, give back what was not written, close when the last answer is in."""
        if not self.accepting:
            return
        self.accepting = False
        self.cause = self.cause or cause
        self._give_back()
        if self.watcher is not None:
            self.watcher.wire_retired(self, cause)
        if not self._streams:
            self.close()

    def check(self, now: float) -> None:
        """Look whether the peer is still there: called every second or so while there is work, else every minute."""
        if self.lost or self.transport is None:
            return
        if self._ping_open and now - self._pinged >= self.PING_TIMEOUT:
            self.silent = True
            self._break("the peer does not answer any more")
            return
        quiet = now - max(self._heard, self._pinged)
        if not self._ping_open and quiet >= (self.STALLED if self._streams else self.IDLE_PING):
            self._ping_open, self._pinged = True, now
            self._drive(self._connection.ping)

    def close(self) -> None:
        """Say goodbye and close the connection; answers that are outstanding become `Unknown`."""
        self.accepting = False
        self.cause = self.cause or "closed"
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        try:
            self._connection.terminate_connection()
            transport.write(self._connection.data_to_send())
        except NGH2Error:
            pass
        transport.close()

    def abort(self, cause: str) -> None:
        """Drop the connection at once."""
        self._break(cause)

    async def send_notification(self, request: NotificationRequest) -> NotificationResult:
        """One notification, in aioapns's vocabulary. Raises aioapns's `ConnectionClosed` when there is no answer."""
        future: asyncio.Future[Answer | None] = self.loop.create_future()

        def done(batch: Batch) -> None:
            if not future.done():
                future.set_result(batch.answers[0])

        batch = Batch([push_of(request, self.apns_topic)], self.loop.time() + 30.0, done)
        timer = self.loop.call_at(batch.deadline, self.expire, batch)
        self.enqueue([(batch, 0)])
        try:
            return result_of(request, await future)
        finally:
            timer.cancel()

    # --- what the transport calls -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface and our SETTINGS."""
        self.transport = transport  # type: ignore[assignment]
        self.accepting = True
        self._heard = self.loop.time()
        self._connection.initiate_connection({Setting.ENABLE_PUSH: 0})
        self._connection.set_local_window_size(1 << 20)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take in what the peer sent, and answer at the end of this turn of the event loop."""
        if self.lost or self.transport is None or self.transport.is_closing():
            return
        self._heard = self.loop.time()
        self._ping_open = False
        try:
            self._connection.receive_data(data)
            self._handle(self._connection.events())
        except NGH2Error as error:
            self._break(f"protocol error: {error}")
            return
        self._schedule_flush()
        if self.watcher is not None and (self.accepting or self.answered):
            self.watcher.wire_room(self)

    def pause_writing(self) -> None:
        """The peer does not read: write nothing until it does (libnghttp2 limits what it may still ask for)."""
        self._paused = True

    def resume_writing(self) -> None:
        """The peer reads again."""
        self._paused = False
        self._schedule_flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Settle everything that waits for an answer, give back what was never written."""
        if self.lost:
            return
        self.lost = True
        self.accepting = False
        self.cause = self.cause or (describe(exc) if exc else "closed by the peer")
        self.unanswered_at_loss += len(self._streams)
        self._settle_streams(Unknown(cause=f"connection lost: {self.cause}"))
        self._give_back()
        if self.on_connection_lost is not None:
            self.on_connection_lost(self)
        if self.watcher is not None:
            self.watcher.wire_lost(self, self.cause)

    # --- writing ----------------------------------------------------------------------------------------------------

    def _schedule_flush(self) -> None:
        if not self._flushing and self.transport is not None and not self.lost:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Submit what fits and write it, once per turn of the event loop."""
        self._flushing = False
        transport, connection = self.transport, self._connection
        if self.lost or self._paused or transport is None or transport.is_closing():
            return
        try:
            while True:
                self._submit()
                data = connection.data_to_send()
                if data:
                    transport.write(data)
                events = connection.events()
                if not events:
                    break
                self._handle(events)
        except NGH2Error as error:
            self._break(f"protocol error: {error}")
            return
        if not self.accepting and not self._streams:
            self.close()
        elif self.watcher is not None and self.room:
            self.watcher.wire_room(self)

    def _submit(self) -> None:
        """Turn queued slots into requests, as far as the peer's limits and its connection window allow."""
        queue, streams, connection = self._queue, self._streams, self._connection
        room = self._limit - len(streams)
        if not queue or room <= 0 or not self.accepting:
            return
        if not connection.can_send_request:
            self.retire("no more streams")
            return
        self._blocks.refresh()
        waiting = connection.queued_body_size()
        window = connection.remote_window_size - waiting
        headers: PushHeaders | None = None
        block: list[Header] = []
        while queue and room > 0:
            slot = queue[0]
            push = slot[0].pushes[slot[1]]
            body = push.payload
            size = len(body)
            if size > window and (waiting or window <= 0):
                break  # stays in our queue, where it is known not to be sent
            if push.headers is not headers:
                headers = push.headers
                block = self._blocks.get(headers)
            block[PATH] = NeverIndexedHeader(b":path", b"/3/device/" + push.token.encode())
            block[APNS_ID] = NeverIndexedHeader(b"apns-id", push.apns_id.encode())
            stream_id = connection.send_request(block)
            streams[stream_id] = queue.popleft()
            connection.send_data(stream_id, body, end_stream=True)
            room -= 1
            window -= size
            waiting += size

    def _drive(self, act: Callable[[], object]) -> None:
        try:
            act()
        except NGH2Error as error:
            self._break(f"protocol error: {error}")
        self._schedule_flush()

    # --- reading ----------------------------------------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        streams = self._streams
        body_waits = bool(streams) and self._body_waits()
        for event in events:
            kind = type(event)
            if kind is ResponseReceived:
                self._respond(event, body_waits)  # type: ignore[arg-type]
            elif kind is StreamClosed:
                entry = streams.pop(event.stream_id, None)  # type: ignore[attr-defined]
                if entry is None:
                    continue
                if type(entry) is tuple:
                    if entry[0].answers[entry[1]] is None:
                        entry[0].settle(entry[1], self._closed_answer(event))  # type: ignore[arg-type]
                else:
                    self._finish(entry)  # type: ignore[arg-type]
            elif kind is DataReceived:
                entry = streams.get(event.stream_id)  # type: ignore[attr-defined]
                if isinstance(entry, Reply):
                    entry.add(event.data)  # type: ignore[attr-defined]
            elif kind is not WindowUpdated:
                self._handle_control(event)

    def _body_waits(self) -> bool:
        try:
            return self._connection.queued_body_size() > 0
        except NGH2Error:
            return False

    def _respond(self, event: ResponseReceived, body_waits: bool) -> None:
        stream_id, headers = event.stream_id, event.headers
        slot = self._streams.get(stream_id)
        if type(slot) is not tuple:
            return  # cancelled meanwhile
        self.answered += 1
        if event.end_stream and headers[0] == _STATUS_OK:
            slot[0].settle(slot[1], ACCEPTED if len(headers) <= 2 else accepted(headers))
        else:
            self._streams[stream_id] = reply = Reply(slot, *parse_headers(headers))
            if event.end_stream:
                self._finish(reply)
        if body_waits and event.end_stream and self._connection.queued_body_size(stream_id):
            self._connection.reset_stream(stream_id, ErrorCode.CANCEL)  # answered before our request was whole

    def _finish(self, reply: Reply) -> None:
        if reply.batch.answers[reply.place] is not None:
            return
        answer = reply.answer()
        reply.batch.settle(reply.place, answer)
        if self.watcher is not None and isinstance(answer, Rejected):
            self.watcher.wire_rejected(self, answer)

    def _closed_answer(self, event: StreamClosed) -> Answer:
        """The answer of a stream that closed without a response."""
        if event.local_error is not None:
            return NotProcessed(cause=f"not sent: {event.local_error}")
        if event.error_code == ErrorCode.REFUSED_STREAM:
            if self.goaway:
                return NotProcessed(cause=f"goaway: {self.goaway}")
            if self.watcher is not None:
                self.watcher.wire_refused(self)
            return NotProcessed(cause="refused")
        return Unknown(cause=f"reset: {error_name(event.error_code)}")

    def _handle_control(self, event: Event) -> None:
        if isinstance(event, SettingsReceived):
            stated = event.settings.get(Setting.MAX_CONCURRENT_STREAMS)
            self.limit_before = self._limit
            if stated is not None:
                self._limit = min(stated, self.MOST_STREAMS)
            elif not self.settled:
                self._limit = self.MOST_STREAMS
            self.settled = True
            if self.watcher is not None:
                self.watcher.wire_settings(self)
        elif isinstance(event, GoAwayReceived):
            self.goaway = parse_goaway(event.error_code, event.debug_data)
            self.goaway_error = event.error_code != ErrorCode.NO_ERROR or not at_its_own_ends(self.goaway)
            self.cause = f"goaway: {self.goaway}"
            self.retire(self.cause)
        elif isinstance(event, ConnectionClosed):
            if self._streams:
                self.unanswered_at_loss += len(self._streams)
                name = error_name(event.error_code)
                self.cause = self.cause or f"HTTP/2 session ended: {name}"
                self._settle_streams(Unknown(cause=f"connection lost: {self.cause}"))
            self.accepting = False
        elif isinstance(event, PingAcknowledged):
            self._ping_open = False

    # --- ends -------------------------------------------------------------------------------------------------------

    def _cancel(self, stream_id: int, batch: Batch, place: int, answer: Answer) -> None:
        if batch.answers[place] is not None:
            return
        batch.settle(place, answer)
        self.cancelled += 1
        self._drive(lambda: self._connection.reset_stream(stream_id, ErrorCode.CANCEL))

    def _settle_streams(self, answer: Answer) -> None:
        streams, self._streams = self._streams, {}
        for entry in streams.values():
            if isinstance(entry, Reply):
                self._finish(entry)
            else:
                entry[0].settle(entry[1], answer)

    def _give_back(self) -> None:
        """Nothing in our queue was ever written: another connection may send it."""
        if not self._queue:
            return
        slots, self._queue = list(self._queue), deque()
        if self.watcher is not None:
            self.watcher.wire_returned(self, slots)
        else:
            for batch, place in slots:
                batch.settle(place, NotProcessed(cause=f"never written: {self.cause}"))

    def _break(self, cause: str) -> None:
        self.accepting = False
        self.cause = self.cause or cause
        if self.transport is not None:
            self.transport.abort()
