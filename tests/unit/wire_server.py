"""A wire with a server in memory: no sockets, no clock but the test's own."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ngh2 import Configuration, Connection, DataReceived, NGH2Error, RequestReceived, Role, StreamClosed, StreamReset

from sender.apns.batch import Batch, Slot
from sender.apns.wire import Wire
from sender.model import Push, PushHeaders, PushType, Rejected

HEADERS = PushHeaders(topic="com.example.news", push_type=PushType.ALERT, priority=10, expiration=0)
UNLIMITED = (2**62, 2**62)


class Clockwork:
    """The part of an event loop that a wire uses, turned by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.soon: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.soon.append((function, arguments))

    def turn(self) -> None:
        while self.soon:
            due, self.soon = self.soon, []
            for function, arguments in due:
                function(*arguments)


class Pipe:
    """A transport that keeps what is written until the test carries it over."""

    def __init__(self, loop: Clockwork, wire: Wire) -> None:
        self.loop, self.wire = loop, wire
        self.written = bytearray()
        self.writes = 0
        self.closed = False

    def write(self, data: bytes) -> None:
        self.writes += 1
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.loop.call_soon(self.wire.connection_lost, None)

    abort = close


class Tokens:
    def __init__(self) -> None:
        self.value = b"bearer one"

    def header(self) -> bytes:
        return self.value


class Harness:
    """A wire, its watcher, and the server at the other end."""

    def __init__(self, *, streams: int = 100, window: int = 65_535, tokens: Tokens | None = None) -> None:
        self.loop = Clockwork()
        self.tokens = tokens or Tokens()
        self.wire = Wire("", self.loop, None, self.tokens)  # type: ignore[arg-type]
        self.wire.watcher = self
        self.wire.authority = "apns.test"
        self.pipe = Pipe(self.loop, self.wire)
        self.server = Connection(
            Role.SERVER, Configuration(stream_reset_rate_limit=UNLIMITED, glitch_rate_limit=UNLIMITED)
        )
        self.server.initiate_connection({3: streams, 4: window})
        self.batches: list[Batch] = []
        self.done: Counter[int] = Counter()
        self.arrivals: Counter[str] = Counter()  # apns-id → how often its HEADERS came
        self.requests: dict[int, dict[bytes, bytes]] = {}
        self.raw_headers: list[Sequence[tuple[bytes, bytes]]] = []
        self.open: list[int] = []  # complete requests without an answer
        self.processed: set[str] = set()
        self.said: dict[str, int] = {}  # apns-id → status that the server sent
        self.returned: list[Slot] = []
        self.told: Counter[str] = Counter()
        self.gone = False
        self.last = 2**31  # streams above are not taken: GOAWAY's last stream id
        self.wire.connection_made(self.pipe)  # type: ignore[arg-type]

    # --- the watcher ---
    def wire_settings(self, wire: Wire) -> None:
        self.told["settings"] += 1

    def wire_room(self, wire: Wire) -> None:
        self.told["room"] += 1

    def wire_rejected(self, wire: Wire, answer: Rejected) -> None:
        self.told["rejected"] += 1

    def wire_refused(self, wire: Wire) -> None:
        self.told["refused"] += 1

    def wire_retired(self, wire: Wire, cause: str) -> None:
        self.told["retired"] += 1

    def wire_returned(self, wire: Wire, slots: Sequence[Slot]) -> None:
        self.returned += slots

    def wire_lost(self, wire: Wire, cause: str) -> None:
        self.told["lost"] += 1

    # --- the client ---
    def send(self, count: int, size: int = 100, headers: PushHeaders = HEADERS) -> Batch:
        pushes = [
            Push(token="ab" * 32, apns_id=str(uuid.uuid4()), payload=b"x" * size, headers=headers) for _ in range(count)
        ]
        number = len(self.batches)

        def done(batch: Batch) -> None:
            self.done[number] += 1

        batch = Batch(pushes, self.loop.now + 30, done)
        self.batches.append(batch)
        self.wire.enqueue([(batch, place) for place in range(count)])
        return batch

    # --- the line ---
    def carry(self, chunk: int = 1 << 20, *, rounds: int = 50) -> None:
        """Pass bytes both ways until nobody has anything to say."""
        for _ in range(rounds):
            self.loop.turn()
            there = bytes(self.pipe.written)
            self.pipe.written.clear()
            back = self._serve(there)
            for start in range(0, len(back), chunk):
                if not self.wire.lost:
                    self.wire.data_received(back[start : start + chunk])
            self.loop.turn()
            if not self.pipe.written and not back:
                return

    def drop(self) -> None:
        self.gone = True
        self.pipe.closed = True
        self.wire.connection_lost(ConnectionResetError("dropped"))
        self.loop.turn()

    def _serve(self, data: bytes) -> bytes:
        if self.gone:
            return b""
        try:
            if data:
                self.server.receive_data(data)
            for event in self.server.events():
                self._take(event)
            return self.server.data_to_send()
        except NGH2Error:
            self.gone = True
            return b""

    def _take(self, event: object) -> None:
        if isinstance(event, RequestReceived):
            self.raw_headers.append(event.headers)
            headers = dict(event.headers)
            self.requests[event.stream_id] = headers
            self.arrivals[headers[b"apns-id"].decode()] += 1
        elif isinstance(event, DataReceived) and event.end_stream and event.stream_id <= self.last:
            self.open.append(event.stream_id)
        elif isinstance(event, StreamReset | StreamClosed) and event.stream_id in self.open:
            self.open.remove(event.stream_id)

    def id_of(self, stream: int) -> str:
        return self.requests[stream][b"apns-id"].decode()

    def say(self, stream: int, status: int, body: bytes = b"", *, code: int | None = None) -> None:
        """Answer a request; with a code, cut it short after the headers."""
        self.processed.add(self.id_of(stream))
        try:
            self.server.send_response(
                stream, [(b":status", str(status).encode())], end_stream=not body and code is None
            )
            if code is not None:
                self._flush_server()
                self.server.reset_stream(stream, code)
            elif body:
                self.server.send_data(stream, body, end_stream=True)
            self.said[self.id_of(stream)] = status
        except NGH2Error:
            pass
        if stream in self.open:
            self.open.remove(stream)

    def reset(self, stream: int, code: int) -> None:
        if stream in self.open:
            self.open.remove(stream)
        self.attempt(lambda: self.server.reset_stream(stream, code))

    def attempt(self, act: Callable[[], object]) -> None:
        with suppress(NGH2Error):
            act()

    def _flush_server(self) -> None:
        data = self.server.data_to_send()
        if data and not self.wire.lost:
            self.wire.data_received(data)
