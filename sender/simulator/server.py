"""The simulator as a whole: listeners for both environments, outages, and a thread of its own to run in."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast

from sender.errors import ConflictError, CredentialError
from sender.model import Environment
from sender.simulator.apple import SimulatedApns
from sender.simulator.certificates import Certificates, ensure_certificates, make_client_certificate
from sender.simulator.connection import ApnsConnection
from sender.simulator.control import Control
from sender.simulator.control_http import ControlServer
from sender.simulator.journal import Counters, Journal, Received, RecordMode
from sender.simulator.outages import Outages
from sender.simulator.providers import ProviderKey, Providers
from sender.simulator.scenario import OutageKind, Scenario

T = TypeVar("T")
_HANDSHAKE_FAILURE = bytes.fromhex("15 0303 0002 02 28")  # RFC 8446, section 6: alert, fatal, handshake_failure
_HANDSHAKE_TIMEOUT = 10.0  # seconds
_SHUTDOWN_TIMEOUT = 1.0  # seconds that a closing connection waits for the client's close_notify


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """How to run a simulator. Ports: 0 takes any free one."""

    host: str = "127.0.0.1"
    port: int = 0  # production
    sandbox_port: int = 0
    control_port: int | None = 0  # None: no control endpoint over HTTP
    directory: Path | None = None  # of the CA and certificates; None: a temporary one
    keys: Sequence[ProviderKey] = ()
    accept_any_key: bool | None = None  # whether unknown keys are accepted; None: only when there are no `keys`
    client_cas: Sequence[Path] = ()  # PEM files: who else may issue client certificates
    topics: Sequence[str] = ()  # bundle ids that may be pushed to; empty: all
    scenario: Scenario = field(default_factory=Scenario)
    record: RecordMode = "full"
    keep_payloads: bool = False


class Simulator:
    """An APNs of your own: `with Simulator() as sim:` runs it in a thread; use `sim.url`, `sim.ca_file`, `sim.control`.

    Raises `ConflictError` when a port is taken.
    """

    def __init__(self, config: SimulatorConfig | None = None) -> None:
        self.config = config or SimulatorConfig()
        self.control = Control(self)
        self.journal = Journal(self.config.record, keep_payloads=self.config.keep_payloads)
        accept_any = self.config.accept_any_key
        providers = Providers(
            self.config.keys, accept_any_key=not self.config.keys if accept_any is None else accept_any
        )
        self.apns = SimulatedApns(
            self.config.scenario, topics=self.config.topics, providers=providers, journal=self.journal
        )
        self.connections: set[ApnsConnection] = set()
        self.outages = Outages(self)
        self._listeners: dict[Environment, asyncio.Server] = {}
        self._ports = {
            Environment.PRODUCTION: self.config.port,
            Environment.SANDBOX: self.config.sandbox_port,
        }
        self._handshakes: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._temporary: Path | None = None
        self._control_server: ControlServer | None = None

    # --- where it is ------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Where production is: https://127.0.0.1:PORT."""
        return self._url("https", self._ports[Environment.PRODUCTION])

    @property
    def sandbox_url(self) -> str:
        """Where the sandbox is."""
        return self._url("https", self._ports[Environment.SANDBOX])

    @property
    def control_url(self) -> str | None:
        """Where the control endpoint is, if there is one."""
        return self._url("http", self._control_server.port) if self._control_server else None

    @property
    def ca_file(self) -> Path:
        """The CA (PEM) that clients must trust."""
        return self._files.ca_file

    def client_certificate(self, topic: str, path: Path) -> Path:
        """Write a push certificate for a bundle id (certificate and key, PEM) that this simulator accepts."""
        return make_client_certificate(self._files, topic, path)

    def counters(self) -> Counters:
        """Figures since the start or the last reset."""
        return self.control.counters()

    def received(self, token: str | None = None) -> list[Received]:
        """What came in, in order: everything, or for one token. Needs record="full"."""
        return list(self.control.received(token))

    def accepted_counts(self) -> dict[str, int]:
        """Token → how many notifications its device gets. Needs record="full" or "counts"."""
        return self.control.accepted_counts()

    def expirations(self) -> set[int | None]:
        """Every distinct apns-expiration that came in; None: a request without one."""
        return self.control.expirations()

    def _url(self, scheme: str, port: int) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"{scheme}://{host}:{port}"

    # --- running ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Simulator:
        self._temporary = None if self.config.directory else Path(tempfile.mkdtemp(prefix="apns-simulator-"))
        self._files: Certificates = ensure_certificates(cast(Path, self.config.directory or self._temporary))
        self._tls = self._context(self._files.server_file)
        self._wrong_tls = self._context(self._files.wrong_file)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="apns-simulator", daemon=True)
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._thread = None
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def call(self, function: Callable[[], T]) -> T:
        """Run something short on the simulator's event loop, from any thread, and return what it returns."""
        if self._thread is None:
            raise ConflictError("the simulator is not running: use it in a with statement")
        if threading.current_thread() is self._thread:
            return function()

        async def run() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    async def _start(self) -> None:
        for environment in Environment:
            await self.listen(environment)
        if self.config.control_port is not None:
            self._control_server = ControlServer(self.control)
            try:
                await self._control_server.start(self.config.host, self.config.control_port)
            except OSError as error:
                raise ConflictError(f"port {self.config.control_port}: {error.strerror}; choose another one") from None
        self.set_scenario(self.config.scenario)

    async def _stop(self) -> None:
        self.outages.cancel()
        self.stop_listening()
        if self._control_server is not None:
            await self._control_server.stop()
        for connection in list(self.connections):
            connection.abort()
        for task in list(self._handshakes):
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        await asyncio.sleep(0)  # connection_lost is called on the next turn

    # --- listening (event loop only) --------------------------------------------------------------------------------

    async def listen(self, environment: Environment) -> None:
        """Listen for an environment, on the port that it had before if any."""
        if environment in self._listeners:
            return
        loop, port = asyncio.get_running_loop(), self._ports[environment]
        try:
            server = await loop.create_server(lambda: _Arrival(self, environment), self.config.host, port, backlog=1024)
        except OSError as error:
            raise ConflictError(f"port {port} on {self.config.host}: {error.strerror}; choose another one") from None
        self._listeners[environment] = server
        self._ports[environment] = server.sockets[0].getsockname()[1]

    def stop_listening(self) -> None:
        """Refuse new connections; open ones stay."""
        for server in self._listeners.values():
            server.close()
        self._listeners.clear()

    def set_scenario(self, scenario: Scenario) -> None:
        """Behave like this from now on; settings, GOAWAYs and drops take hold with the next connections."""
        self.apns.set_scenario(scenario, now=time.time())
        self.outages.plan(scenario.outages)

    def arrived(self, transport: asyncio.Transport, environment: Environment) -> None:
        """A TCP connection was accepted: begin TLS, unless an outage says otherwise."""
        self.journal.attempts_per_second[int(time.time())] += 1
        kind = self.outages.next_kind()
        if kind is OutageKind.RESET:
            transport.abort()
        elif kind is OutageKind.TLS_ALERT:
            self.journal.handshakes_failed += 1
            transport.set_protocol(_Alert(transport))
            transport.resume_reading()
        elif kind is not OutageKind.SILENT:
            task = asyncio.get_running_loop().create_task(self._shake_hands(transport, environment, kind))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(
        self, transport: asyncio.Transport, environment: Environment, kind: OutageKind | None
    ) -> None:
        connection = ApnsConnection(self.apns, environment, self.connections.discard)
        context = self._wrong_tls if kind is OutageKind.WRONG_CERTIFICATE else self._tls
        try:
            secured = await asyncio.get_running_loop().start_tls(
                transport,
                connection,
                context,
                server_side=True,
                ssl_handshake_timeout=_HANDSHAKE_TIMEOUT,
                ssl_shutdown_timeout=_SHUTDOWN_TIMEOUT,
            )
        except (OSError, TimeoutError):
            self.journal.handshakes_failed += 1
            transport.abort()
            return
        if secured is None:
            return
        if kind is OutageKind.CLOSE:
            secured.close()
            return
        self.connections.add(connection)
        connection.connection_made(secured)

    def _context(self, certificate: Path) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(certificate)
        context.set_alpn_protocols(["h2"])
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a client's own certificate may be its trust anchor
        for authority in (self._files.ca_file, *self.config.client_cas):
            try:
                context.load_verify_locations(authority)
            except OSError as error:
                raise CredentialError(
                    f"client CA {authority}", [f"is no readable PEM file: {error.strerror}"]
                ) from None
        return context


class _Arrival(asyncio.Protocol):
    """A connection before its TLS handshake."""

    def __init__(self, simulator: Simulator, environment: Environment) -> None:
        self._simulator = simulator
        self._environment = environment

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        plain = cast(asyncio.Transport, transport)
        plain.pause_reading()  # the handshake's bytes belong to start_tls, which resumes
        self._simulator.arrived(plain, self._environment)


class _Alert(asyncio.Protocol):
    """Answers a ClientHello with a fatal handshake_failure (asyncio itself would cut the connection without a word)."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(_HANDSHAKE_FAILURE)
        self._transport.close()
