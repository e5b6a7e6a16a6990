"""The simulator as a whole: listeners for both environments, outages, and a thread of its own to run in."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar, cast

from sender.errors import ConflictError
from sender.model import Environment
from sender.simulator.apple import SimulatedApns
from sender.simulator.arrivals import Arrivals
from sender.simulator.certificates import Certificates, ensure_certificates, make_client_certificate
from sender.simulator.connection import ApnsConnection
from sender.simulator.control import Control
from sender.simulator.control_http import ControlServer
from sender.simulator.journal import Counters, Journal, Received, RecordMode
from sender.simulator.outages import Outages
from sender.simulator.providers import ProviderKey, Providers
from sender.simulator.scenario import Scenario

T = TypeVar("T")


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
        self.outages = Outages(self)
        self._listeners: dict[Environment, asyncio.Server] = {}
        self._ports = {
            Environment.PRODUCTION: self.config.port,
            Environment.SANDBOX: self.config.sandbox_port,
        }
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

    @property
    def connections(self) -> set[ApnsConnection]:
        """Those whose handshake is done and that are not lost yet (event loop only)."""
        return self._arrivals.connections

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
        try:
            self._files: Certificates = ensure_certificates(cast(Path, self.config.directory or self._temporary))
            self._arrivals = Arrivals(self.apns, self._files, self.config.client_cas, fault=self.outages.next_kind)
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="apns-simulator", daemon=True)
            self._thread.start()
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is not None:
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
        await self._arrivals.stop()

    # --- listening (event loop only) --------------------------------------------------------------------------------

    async def listen(self, environment: Environment) -> None:
        """Listen for an environment, on the port that it had before if any."""
        if environment in self._listeners:
            return
        loop, port = asyncio.get_running_loop(), self._ports[environment]
        try:
            server = await loop.create_server(
                lambda: self._arrivals.protocol(environment), self.config.host, port, backlog=1024
            )
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
