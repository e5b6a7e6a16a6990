"""What the simulator received, kept compactly: about 70 bytes a push, plus counters that are plain ints."""

from __future__ import annotations

from binascii import unhexlify
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import Literal

from sender.model import Environment
from sender.simulator.replies import Reply
from sender.simulator.requests import Shape

RecordMode = Literal["full", "counts", "none"]

_ROW = Struct("<dIII16sB")  # at, shape, outcome, payload, apns-id, length of the token that follows
_SHAPES_KEPT = 1_000
_CHUNK = 4 << 20  # bytes of rows in one buffer


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One request as it came in. `status` 0: none was sent, and `reason` says what was done instead."""

    token: str = field(repr=False)
    apns_id: str
    status: int
    reason: str
    delivered: bool  # whether the device gets it; true for some that were never answered
    at: float  # Unix seconds, the simulator's clock
    environment: Environment
    topic: str
    push_type: str
    priority: int
    expiration: int | None
    collapse_id: str | None
    payload: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Figures since the start or the last reset."""

    requests: int
    delivered: int  # requests whose device gets the notification, answered or not
    by_status: dict[int, int]  # 0: no answer was sent
    by_reason: dict[str, int]  # Apple's reasons; "" counts the 200s; what was done instead where status is 0
    connections_opened: int
    connections_open: int
    handshakes_failed: int
    provider_tokens: int  # distinct authorization headers
    per_second: dict[int, int]  # Unix second → requests that arrived in it
    attempts_per_second: dict[int, int]  # Unix second → connections that were attempted and seen


class Journal:
    """Written by the simulator's event loop; read from any thread."""

    def __init__(self, mode: RecordMode, *, keep_payloads: bool) -> None:
        self.mode: RecordMode = mode
        self.keep_payloads = keep_payloads
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self.requests = 0
        self.per_second: defaultdict[int, int] = defaultdict(int)
        self.attempts_per_second: defaultdict[int, int] = defaultdict(int)
        self.connections_opened = 0
        self.handshakes_failed = 0
        self.outcomes: list[tuple[int, str, bool]] = []
        self.outcome_counts: list[int] = []
        self._outcome_index: dict[tuple[int, str, bool], int] = {}
        self._shapes: list[tuple[Environment, Shape]] = []
        self._shape_index: dict[Environment, dict[Shape, int]] = {environment: {} for environment in Environment}
        self._payloads: list[bytes] = []
        self._payload_index: dict[bytes, int] = {}
        self._chunks = [bytearray()]
        self._accepted: Counter[bytes] = Counter()
        self._expirations: set[int | None] = set()

    def record(  # noqa: PLR0917  the hot path: keywords cost
        self, at: float, environment: Environment, shape: Shape, token: bytes, apns_id: bytes, body: bytes, reply: Reply
    ) -> None:
        """Write one request down. `token` is lower-case hex, or empty when it was malformed."""
        index = self._outcome_index.get(reply.outcome)
        if index is None:
            index = self._new_outcome(reply.outcome)
        self.outcome_counts[index] += 1
        self.requests += 1
        if self.mode == "none":
            return
        which = self._shape_index[environment].get(shape)
        if which is None:
            which = self._new_shape(environment, shape)
        if self.mode == "counts":
            if reply.delivered:
                self._accepted[token] += 1
            return
        raw = unhexlify(token)
        identifier = unhexlify(apns_id.replace(b"-", b""))
        payload = self._payload(body) if self.keep_payloads else 0
        rows = self._chunks[-1]
        rows += _ROW.pack(at, which, index, payload, identifier, len(raw)) + raw
        if len(rows) >= _CHUNK:
            self._chunks.append(bytearray())

    def _new_outcome(self, outcome: tuple[int, str, bool]) -> int:
        self.outcomes.append(outcome)
        self.outcome_counts.append(0)
        self._outcome_index[outcome] = len(self.outcomes) - 1
        return len(self.outcomes) - 1

    def _new_shape(self, environment: Environment, shape: Shape) -> int:
        self._expirations.add(shape.expiration)
        index = self._shape_index[environment]
        if self.mode == "counts":  # nothing refers to shapes: keep the few that come again and again
            if len(index) >= _SHAPES_KEPT:
                index.clear()
            return index.setdefault(shape, 0)
        self._shapes.append((environment, shape))
        return index.setdefault(shape, len(self._shapes) - 1)

    def _payload(self, body: bytes) -> int:
        index = self._payload_index.get(body)
        if index is None:
            self._payloads.append(body)
            index = self._payload_index[body] = len(self._payloads)
        return index

    # --- Reading ----------------------------------------------------------------------------------------------------

    def received(self, token: str | None = None) -> Iterator[Received]:
        """What came in, in order: everything, or for one token. Needs record="full"."""
        wanted = None if token is None else bytes.fromhex(token)
        for at, which, index, payload, identifier, raw in self._scan():
            if wanted is None or raw == wanted:
                yield self._received(at, which, index, payload, identifier, raw)

    def accepted_counts(self) -> dict[str, int]:
        """Token → how many notifications its device gets. Needs record="full" or "counts"."""
        if self.mode != "full":
            return {token.decode(): count for token, count in self._accepted.copy().items()}
        delivered = [outcome[2] for outcome in self.outcomes]
        counted = Counter(raw for _, _, index, _, _, raw in self._scan() if delivered[index])
        return {raw.hex(): count for raw, count in counted.items()}

    def expirations(self) -> set[int | None]:
        """Every distinct apns-expiration; None: the header was missing."""
        return self._expirations.copy()

    def _scan(self) -> Iterator[tuple[float, int, int, int, bytes, bytes]]:
        size, unpack = _ROW.size, _ROW.unpack_from
        for chunk in [bytes(rows) for rows in list(self._chunks)]:  # copies: the event loop goes on appending
            offset = 0
            while offset < len(chunk):
                at, which, index, payload, identifier, length = unpack(chunk, offset)
                offset += size + length
                yield at, which, index, payload, identifier, chunk[offset - length : offset]

    def _received(  # noqa: PLR0917
        self, at: float, which: int, index: int, payload: int, identifier: bytes, raw: bytes
    ) -> Received:
        environment, shape = self._shapes[which]
        status, reason, delivered = self.outcomes[index]
        text = identifier.hex()
        return Received(
            token=raw.hex(),
            apns_id=f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}",
            status=status,
            reason=reason,
            delivered=delivered,
            at=at,
            environment=environment,
            topic=shape.topic,
            push_type=shape.push_type,
            priority=shape.priority,
            expiration=shape.expiration,
            collapse_id=shape.collapse_id,
            payload=self._payloads[payload - 1] if payload else None,
        )
