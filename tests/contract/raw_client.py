"""A small HTTP/2 client for testing the simulator: libnghttp2 and a blocking socket, and no opinion of its own."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from ngh2 import (
    Connection,
    DataReceived,
    GoAwayReceived,
    PingAcknowledged,
    ResponseReceived,
    Role,
    SettingsReceived,
    StreamClosed,
    StreamReset,
)

KEY = ec.generate_private_key(ec.SECP256R1())
TOPIC = "com.example.news"
BODY = b'{"aps":{"alert":"hello"}}'


def token(number: int) -> str:
    """The n-th made-up device token."""
    return f"{number:08x}" * 8


def provider_token(
    *,
    key: ec.EllipticCurvePrivateKey = KEY,
    team: str = "TEAM123456",
    kid: str = "KEY1234567",
    age: float = 0,
    algorithm: str = "ES256",
) -> bytes:
    """An authorization header, `age` seconds old."""
    head = _base64(json.dumps({"alg": algorithm, "kid": kid}).encode())
    claims = _base64(json.dumps({"iss": team, "iat": int(time.time() - age)}).encode())
    r, s = utils.decode_dss_signature(key.sign(head + b"." + claims, ec.ECDSA(hashes.SHA256())))
    return b"bearer " + head + b"." + claims + b"." + _base64(r.to_bytes(32, "big") + s.to_bytes(32, "big"))


def _base64(value: bytes) -> bytes:
    return base64.urlsafe_b64encode(value).rstrip(b"=")


@dataclass
class Answer:
    """What came back on a stream so far."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    reset: int | None = None  # RST_STREAM's code
    closed: bool = False

    @property
    def status(self) -> int:
        return int(self.headers.get(b":status", b"0"))

    @property
    def reason(self) -> str:
        return str(self.json.get("reason", ""))

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.body)) if self.body else {}


class RawClient:
    """One connection. `push` sends; `wait` reads until the streams are closed or the time is over."""

    def __init__(self, url: str, ca_file: Path, *, certificate: Path | None = None) -> None:
        context = ssl.create_default_context(cafile=ca_file)
        context.set_alpn_protocols(["h2"])
        if certificate is not None:
            context.load_cert_chain(certificate)
        where = urlsplit(url)
        plain = socket.create_connection((where.hostname, where.port), timeout=5)
        try:
            self._socket = context.wrap_socket(plain, server_hostname=where.hostname)
        except BaseException:
            plain.close()
            raise
        self._h2 = Connection(Role.CLIENT)
        self._h2.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.settings: list[dict[int, int]] = []
        self.goaway: GoAwayReceived | None = None
        self.closed = False
        self.authorization = provider_token()
        self._pinged = False

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def push(
        self,
        device: str = token(1),
        body: bytes = BODY,
        *,
        method: bytes = b"POST",
        path: bytes | None = None,
        repeat: tuple[tuple[bytes, bytes], ...] = (),
        **headers: bytes | None,
    ) -> int:
        """Send one request; `apns_priority=b"5"` sets or, with None, removes a header. Returns the stream id."""
        fields: dict[bytes, bytes | None] = {
            b":method": method,
            b":scheme": b"https",
            b":path": f"/3/device/{device}".encode() if path is None else path,
            b":authority": b"localhost",
            b"authorization": self.authorization,
            b"apns-topic": TOPIC.encode(),
            b"apns-push-type": b"alert",
        } | {name.replace("_", "-").encode(): value for name, value in headers.items()}
        sent = [(name, value) for name, value in fields.items() if value is not None] + list(repeat)
        stream = self._h2.send_request(sent, end_stream=not body)
        if body:
            self._h2.send_data(stream, body, end_stream=True)
        self.answers[stream] = Answer()
        return stream

    def one(self, device: str = token(1), body: bytes = BODY, **options: Any) -> Answer:
        """Push and wait for the answer."""
        stream = self.push(device, body, **options)
        self.wait()
        return self.answers[stream]

    def wait(self, seconds: float = 5.0) -> None:
        """Write, and read until no stream is open, the connection is closed, or the time is over."""
        deadline = time.monotonic() + seconds
        self._write()
        while not self.closed and any(not answer.closed for answer in self.answers.values()):
            if not self._read(deadline):
                return

    def cancel_open(self) -> None:
        """RST_STREAM(CANCEL) on every stream that is open, once its request is out."""
        self._write()
        for stream, answer in self.answers.items():
            if not answer.closed:
                self._h2.reset_stream(stream, 8)
                answer.closed = True
        self._write()
        self.answers = {stream: answer for stream, answer in self.answers.items() if not answer.closed}

    def settle(self) -> None:
        """Write, and read everything that the server has sent until it answers a PING."""
        if self.goaway is not None:
            return
        deadline = time.monotonic() + 5
        self._pinged = False
        self._h2.ping(b"settled?")
        self._write()
        while not self._pinged and not self.closed and self._read(deadline):
            pass

    def wait_closed(self, seconds: float = 5.0) -> bool:
        """Read until the server closes the connection."""
        deadline = time.monotonic() + seconds
        self._write()
        while not self.closed and self._read(deadline):
            pass
        return self.closed

    def _read(self, deadline: float) -> bool:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return False
        self._h2.receive_data(data)
        self._note()
        self._write()
        return True

    def _write(self) -> None:
        data = self._h2.data_to_send()
        self._note()
        try:
            self._socket.settimeout(5)
            self._socket.sendall(data)
        except OSError:
            self.closed = True

    def _note(self) -> None:
        for event in self._h2.events():
            if hasattr(event, "stream_id") and event.stream_id not in self.answers:
                continue  # given up
            match event:
                case ResponseReceived():
                    self.answers[event.stream_id].headers = dict(event.headers)
                case DataReceived():
                    self.answers[event.stream_id].body += event.data
                case StreamReset():
                    self.answers[event.stream_id].reset = event.error_code
                case StreamClosed():
                    self.answers[event.stream_id].closed = True
                case SettingsReceived():
                    self.settings.append(dict(_plain(event.settings)))
                case GoAwayReceived():
                    self.goaway = event
                case PingAcknowledged():
                    self._pinged = True
                case _:
                    pass


def _plain(settings: Mapping[int, int]) -> Mapping[int, int]:
    return settings
