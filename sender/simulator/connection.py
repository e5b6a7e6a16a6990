"""One HTTP/2 connection of the simulated APNs, on ngh2's server side.

The plain path is cheap on purpose: headers are judged once per distinct set, provider tokens once per connection,
there is no timer and no task per request, and everything that one read brings is answered with one write.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from random import Random
from typing import TypeAlias, cast
from uuid import uuid4

from ngh2 import (
    Configuration,
    Connection,
    ConnectionClosed,
    DataReceived,
    NGH2Error,
    RequestReceived,
    Role,
    Setting,
    StreamClosed,
)

from sender.model import Environment
from sender.simulator import replies
from sender.simulator.answers import Answers
from sender.simulator.apple import SimulatedApns
from sender.simulator.certificates import topics_of
from sender.simulator.providers import Verdict
from sender.simulator.replies import Reply
from sender.simulator.requests import (
    BAD_MESSAGE_ID,
    DUPLICATE_HEADERS,
    Shape,
    good_apns_id,
    payload_fault,
    shape_of,
    token_of,
)
from sender.simulator.scenario import GoAway, SettingsChange

_UNLIMITED = (2**62, 2**62)  # clients in trouble send many resets: that is what they are tested for
_SHAPES_KEPT = 1_000
Headers: TypeAlias = tuple[tuple[bytes, bytes], ...]


#: Seconds between the last that is said on a connection and its end.
LINGER = 0.25


class ApnsConnection(asyncio.Protocol):
    """Reads requests, asks `SimulatedApns`, answers, and misbehaves as the scenario says."""

    def __init__(self, apns: SimulatedApns, environment: Environment, closed: Callable[[ApnsConnection], None]) -> None:
        self._apns = apns
        self._journal = apns.journal
        self._environment = environment
        self._closed = closed
        self._transport: asyncio.Transport | None = None
        self._early = bytearray()  # decrypted before connection_made
        self._writable = True
        self._ready = False  # SETTINGS are out
        self._ended = False  # nothing more will be said, and nothing heard
        self._known: dict[bytes, Verdict] = {}
        self._certified: frozenset[str] | None = None
        self._authenticated = False
        self._shapes: dict[Headers, Shape] = {}
        self._fields: dict[bytes, bytes] = {}
        self._shape = Shape()
        self._body: bytes | None = None  # the last one that was in order
        self._bodies: dict[int, bytearray] = {}
        self._headers: dict[int, Headers] = {}
        self._requests = 0
        self._highest = 0  # stream id of a request that was taken
        self._last = 2**31  # streams above are not taken: GOAWAY's last stream id, once there was one
        self._held: list[tuple[int, Headers, bytes]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._goaway: GoAway | None = None
        self._goaway_at = self._drop_at = 0
        self._changes: list[SettingsChange] = []

    # --- asyncio ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done: say our SETTINGS, and plan this connection's mishaps."""
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()
        tls: ssl.SSLObject = transport.get_extra_info("ssl_object")
        if tls.selected_alpn_protocol() != "h2":
            self._transport.close()
            return
        peer = tls.getpeercert(binary_form=True)
        self._certified = topics_of(peer) if peer else None
        self._journal.connections_opened += 1
        self._plan(self._journal.connections_opened)
        settings = self._apns.scenario.settings
        self._h2 = Connection(
            Role.SERVER,
            Configuration(
                auto_window_update=settings.window_updates,
                stream_reset_rate_limit=_UNLIMITED,
                glitch_rate_limit=_UNLIMITED,
            ),
        )
        self._ready = True
        self._answers = Answers(self._h2, self._environment, flush=self._flush, abort=self.abort)
        self._authenticated = self._certified is not None
        streams = settings.max_concurrent_streams if self._authenticated else settings.streams_before_auth
        self._h2.initiate_connection(
            {
                Setting.MAX_CONCURRENT_STREAMS: streams,
                Setting.INITIAL_WINDOW_SIZE: settings.initial_window_size,
                Setting.MAX_FRAME_SIZE: settings.max_frame_size,
                Setting.HEADER_TABLE_SIZE: settings.header_table_size,
            }
        )
        self._flush()
        if self._early:
            early, self._early = self._early, bytearray()
            self.data_received(bytes(early))

    def data_received(self, data: bytes) -> None:
        """Take in everything that was read, and answer with one write."""
        transport = self._transport
        if transport is None:
            self._early += data
            return
        if self._ended or transport.is_closing():
            return
        try:
            self._h2.receive_data(data)
            self._handle_events(transport)
        except NGH2Error:
            self._flush()
            transport.close()
            return
        self._flush()

    def pause_writing(self) -> None:
        """The client reads slowly: leave what is to be written in libnghttp2."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on writing."""
        self._writable = True
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in self._timers:
            timer.cancel()
        if self._ready:
            self._answers.forget()
        self._closed(self)

    # --- from outside -----------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether it is neither closed nor about to be."""
        return self._transport is not None and not self._transport.is_closing()

    def abort(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def send_raw(self, data: bytes) -> None:
        """Write bytes that libnghttp2 knows nothing of, after what it has ready."""
        self._flush()
        if self._transport is not None:
            self._transport.write(data)

    def say_goaway(self, goaway: GoAway) -> None:
        """GOAWAY now, with the newest request as the last one."""
        self._goaway = goaway
        self._send_goaway()
        self._flush()

    def change_settings(self, change: SettingsChange) -> None:
        """Send new SETTINGS."""
        values = {
            Setting.MAX_CONCURRENT_STREAMS: change.max_concurrent_streams,
            Setting.INITIAL_WINDOW_SIZE: change.initial_window_size,
            Setting.MAX_FRAME_SIZE: change.max_frame_size,
            Setting.HEADER_TABLE_SIZE: change.header_table_size,
        }
        self._h2.update_settings({name: value for name, value in values.items() if value is not None})
        self._flush()

    # --- requests ---------------------------------------------------------------------------------------------------

    def _handle_events(self, transport: asyncio.Transport) -> None:  # noqa: PLR0912  the hot loop: no calls to spare
        now = time.time()
        headers, bodies = self._headers, self._bodies
        taken = self._journal.requests
        for event in self._h2.events():
            if isinstance(event, DataReceived):
                stream, data = event.stream_id, event.data
                if event.end_stream:
                    if stream in bodies:
                        data = bytes(bodies.pop(stream) + data)
                    if stream in headers:
                        self._take(stream, headers.pop(stream), data, now)
                else:
                    bodies.setdefault(stream, bytearray()).extend(data)
            elif isinstance(event, RequestReceived):
                if event.end_stream:
                    self._take(event.stream_id, event.headers, b"", now)
                else:
                    headers[event.stream_id] = event.headers
            elif isinstance(event, StreamClosed):
                if event.stream_id in headers:
                    del headers[event.stream_id]
                    bodies.pop(event.stream_id, None)
            elif isinstance(event, ConnectionClosed):
                self._flush()
                self._end()
            if self._ended or transport.is_closing():
                break
        self._journal.per_second[int(now)] += self._journal.requests - taken

    def _take(self, stream: int, headers: Headers, body: bytes, now: float) -> None:
        """A complete request: count it, hold it back for a GOAWAY, or answer it."""
        if stream > self._last:
            return  # above the GOAWAY that is on its way
        self._requests += 1
        if self._goaway_at or self._drop_at or self._changes:
            if self._requests == self._drop_at:
                drop = self._apns.scenario.drop
                lost = replies.DROPPED_AFTER if drop is not None and drop.delivered else replies.DROPPED_BEFORE
                self._answer(stream, headers, body, now, instead=lost)
                return
            goaway = self._goaway
            if goaway is not None and self._goaway_at - goaway.above - goaway.unanswered < self._requests:
                self._hold(goaway, stream, headers, body)
                return
            while self._changes and self._requests >= (self._changes[0].after_requests or 0):
                self.change_settings(self._changes.pop(0))
        self._highest = max(self._highest, stream)
        self._answer(stream, headers, body, now)
        if self._requests == self._goaway_at:
            self._send_goaway()

    def _answer(self, stream: int, headers: Headers, body: bytes, now: float, *, instead: Reply | None = None) -> None:
        """Judge, write down and send. `instead` takes the reply's place (its twin, when nothing would be delivered)."""
        fields = dict(headers)
        unique = len(fields) == len(headers)
        path = fields.pop(b":path", b"")
        apns_id = fields.pop(b"apns-id", b"")
        fields.pop(b"content-length", None)
        shape = self._shape if fields == self._fields else self._look_up(fields)
        token = token_of(path)
        id_fault = None if not apns_id or good_apns_id(apns_id) else BAD_MESSAGE_ID
        if instead is not None and not instead.delivered:
            reply = instead
        else:
            reply = (
                shape.early
                or (None if unique else DUPLICATE_HEADERS)
                or self._identify(shape, now)
                or id_fault
                or self._check_payload(body, shape.payload_limit)
                or (self._apns.decide(token, self._environment, shape, now) if isinstance(token, bytes) else token)
            )
            if instead is not None:
                reply = instead if reply.delivered else replies.UNDELIVERED_TWIN[instead]
        if not apns_id or id_fault is not None:
            apns_id = str(uuid4()).encode()
        known_token = token if isinstance(token, bytes) else b""
        self._journal.record(now, self._environment, shape, known_token, apns_id, body, reply)
        if self._apns.delayed or reply.delay:
            self._answers.send_later(self._apns.delay_of(known_token) + reply.delay, stream, apns_id, reply)
        else:
            self._answers.send(stream, apns_id, reply)

    def _identify(self, shape: Shape, now: float) -> Reply | None:
        """Who pushes; the first who may gets more streams."""
        fault = self._apns.authenticate(shape, self._environment, self._certified, self._known, now)
        if not self._authenticated and self._known:
            self._raise_limit()
        return fault

    def _check_payload(self, body: bytes, limit: int) -> Reply | None:
        """A campaign's payload is parsed once: the next push mostly has the same."""
        if body == self._body and len(body) <= limit:
            return None
        fault = payload_fault(body, limit)
        self._body = body if fault is None else None
        return fault

    def _look_up(self, fields: dict[bytes, bytes]) -> Shape:
        key = tuple(fields.items())
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= _SHAPES_KEPT:
                self._shapes.clear()
            shape = self._shapes[key] = shape_of(fields)
        self._fields, self._shape = fields, shape
        return shape

    def _raise_limit(self) -> None:
        """The first authenticated request: more streams from now on."""
        self._authenticated = True
        settings = self._apns.scenario.settings
        if settings.streams_before_auth != settings.max_concurrent_streams:
            self._h2.update_settings({Setting.MAX_CONCURRENT_STREAMS: settings.max_concurrent_streams})

    def _flush(self) -> None:
        """Write what libnghttp2 has ready, in one piece; close when it has nothing more to do."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._writable:
            data = self._h2.data_to_send()
            if data:
                transport.write(data)
        if not self._h2.want_read and not self._h2.want_write:
            self._end()

    def _end(self) -> None:
        """Everything is said. Closing while the client still writes would reset the connection, and what it has not
        read yet would be lost to it: so what comes now is read and dropped for a moment."""
        if not self._ended and self._transport is not None:
            self._ended = True
            self._timers.append(self._loop.call_later(LINGER, self._transport.close))

    # --- mishaps ----------------------------------------------------------------------------------------------------

    def _plan(self, ordinal: int) -> None:
        scenario = self._apns.scenario
        chance = Random(f"{scenario.seed}/{ordinal}")  # noqa: S311  repeatable on purpose
        if (goaway := scenario.goaway) is not None and ordinal <= (goaway.connections or ordinal):
            self._goaway, self._goaway_at = goaway, chance.randint(*goaway.after_requests)
        if (drop := scenario.drop) is not None and ordinal <= (drop.connections or ordinal):
            self._drop_at = chance.randint(*drop.after_requests)
        for change in scenario.settings_changes:
            if change.after_seconds is not None:
                self._timers.append(self._loop.call_later(change.after_seconds, self.change_settings, change))
        counted = (change for change in scenario.settings_changes if change.after_requests is not None)
        self._changes = sorted(counted, key=lambda change: change.after_requests or 0)

    def _hold(self, goaway: GoAway, stream: int, headers: Headers, body: bytes) -> None:
        if not self._held:
            self._timers.append(self._loop.call_later(goaway.hold_ms / 1000, self._hold_no_longer))
        self._held.append((stream, headers, body))
        if self._requests >= self._goaway_at:
            self._send_goaway()

    def _hold_no_longer(self) -> None:
        if self._held:
            self._send_goaway()
            self._flush()

    def _send_goaway(self) -> None:
        """Settle what was held back (the highest streams lie above the last id), then say GOAWAY."""
        goaway, now = self._goaway, time.time()
        if goaway is None:
            return
        self._goaway, self._goaway_at = None, 0
        held, self._held = sorted(self._held), []
        at = max(len(held) - goaway.above, 0)
        for stream, headers, body in held[:at]:
            self._highest = max(self._highest, stream)
            self._answer(stream, headers, body, now, instead=replies.ANSWER_LOST)
        for stream, headers, body in held[at:]:
            self._answer(stream, headers, body, now, instead=replies.NOT_PROCESSED)
        self._last = self._highest
        self._h2.send_goaway(goaway.error_code, last_stream_id=self._highest, debug_data=goaway.debug_data)
        if goaway.close_after_ms is not None and self._transport is not None:
            closing = self._loop.call_later(goaway.close_after_ms / 1000, self._transport.close)
            self._timers.append(closing)
