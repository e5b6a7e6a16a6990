"""From an accepted TCP connection to an HTTP/2 connection, or to whatever an outage makes of it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from sender.errors import CredentialError
from sender.model import Environment
from sender.simulator.apple import SimulatedApns
from sender.simulator.certificates import Certificates
from sender.simulator.connection import ApnsConnection
from sender.simulator.scenario import OutageKind

_HANDSHAKE_FAILURE = bytes.fromhex("15 0303 0002 02 28")  # RFC 8446, section 6: alert, fatal, handshake_failure
_HANDSHAKE_TIMEOUT = 10.0  # seconds
_SHUTDOWN_TIMEOUT = 1.0  # seconds that a closing connection waits for the client's close_notify


class Arrivals:
    """Does the TLS handshakes; `connections` are those that got through and are not lost yet."""

    def __init__(
        self,
        apns: SimulatedApns,
        files: Certificates,
        client_cas: Sequence[Path],
        *,
        fault: Callable[[], OutageKind | None],
    ) -> None:
        self.connections: set[ApnsConnection] = set()
        self._apns = apns
        self._fault = fault
        self._tls = _context(files.server_file, (files.ca_file, *client_cas))
        self._wrong_tls = _context(files.wrong_file, (files.ca_file,))
        self._handshakes: set[asyncio.Task[None]] = set()

    def protocol(self, environment: Environment) -> asyncio.Protocol:
        """What a listener of this environment hands its connections to."""
        return _Arrival(self, environment)

    def begin(self, transport: asyncio.Transport, environment: Environment) -> None:
        """A TCP connection was accepted: begin TLS, unless an outage says otherwise."""
        self._apns.journal.attempts_per_second[int(time.time())] += 1
        kind = self._fault()
        if kind is OutageKind.RESET:
            transport.abort()
        elif kind is OutageKind.TLS_ALERT:
            self._apns.journal.handshakes_failed += 1
            transport.set_protocol(_Alert(transport))
            transport.resume_reading()
        elif kind is not OutageKind.SILENT:
            task = asyncio.get_running_loop().create_task(self._shake_hands(transport, environment, kind))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def stop(self) -> None:
        """Cut every connection and every handshake."""
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._handshakes):
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        await asyncio.sleep(0)  # connection_lost is called on the next turn

    async def _shake_hands(
        self, transport: asyncio.Transport, environment: Environment, kind: OutageKind | None
    ) -> None:
        connection = ApnsConnection(self._apns, environment, self.connections.discard)
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                connection,
                self._wrong_tls if kind is OutageKind.WRONG_CERTIFICATE else self._tls,
                server_side=True,
                ssl_handshake_timeout=_HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
            )
        except (OSError, TimeoutError):
            self._apns.journal.handshakes_failed += 1
            transport.abort()
            return
        if secured is None:
            return
        if kind is OutageKind.CLOSE:
            secured.close()
            return
        self.connections.add(connection)
        connection.connection_made(secured)


class _Arrival(asyncio.Protocol):
    """A connection before its TLS handshake."""

    def __init__(self, arrivals: Arrivals, environment: Environment) -> None:
        self._arrivals = arrivals
        self._environment = environment

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain = cast(asyncio.Transport, transport)
        plain.pause_reading()  # the handshake's bytes belong to start_tls, which resumes
        self._arrivals.begin(plain, self._environment)


class _Alert(asyncio.Protocol):
    """Answers a ClientHello with a fatal handshake_failure (asyncio itself would cut the connection without a word)."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(_HANDSHAKE_FAILURE)
        self._transport.close()


def _context(certificate: Path, authorities: Sequence[Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate)
    context.set_alpn_protocols(["h2"])
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a client's own certificate may be its trust anchor
    for authority in authorities:
        try:
            context.load_verify_locations(authority)
        except OSError as error:
            raise CredentialError(f"client CA {authority}", [f"is no readable PEM file: {error.strerror}"]) from None
    return context
