"""The stack of the chaos tests: `sender up` as a user starts it, beside a simulated APNs that is a process of its own.
Its processes can be found, hurt, frozen and started again; whatever was done to them, the end is clean."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
import redis

from sender import Alert, Payload
from sender.campaigns import Campaign
from sender.errors import DatabaseUnavailableError
from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, Rehearsal, start_up, stop_process
from sender.settings import Settings, load_settings, running_servers
from sender.simulator import Scenario, SimulatorProcess
from sender.stack.children import PROCESSES_FILE
from sender.store.reports import Report
from tests.chaos.books import Books

#: Seconds of a lease: short, so that what a dead worker held is taken back within the test.
LEASE = 4.0
#: Seconds that a push may wait for its answer: shorter than the longest stall of the simulator.
APNS_TIMEOUT = 8.0
WORKERS = 2
#: Answers take a while, as they do from far away: there is always something in flight when a plug is pulled.
SCENARIO = Scenario(seed=5, latency_ms=30)
#: Batches in flight in one campaign worker.
THREADS: int = Settings.model_fields["worker_threads"].default

_VARIABLES = {"SENDER_LEASE": f"{LEASE}", "SENDER_APNS_TIMEOUT": f"{APNS_TIMEOUT}"}
_GONE = (psutil.NoSuchProcess, ProcessLookupError)


class _Beside(Rehearsal):
    """A rehearsal whose simulator is a process of its own: it takes no time from whoever tests, and can be frozen."""

    def _make_simulator(self) -> SimulatorProcess:  # type: ignore[override]
        of_key = ("--key", str(self.key_file), "--team-id", TEAM_ID, "--key-id", KEY_ID)
        return SimulatorProcess(*of_key, "--topic", BUNDLE_ID, "--record", "counts", scenario=self.scenario)


class ChaosStack:
    """`sender up` with an app and devices, all of which the simulated APNs accepts."""

    def __init__(self, devices: int, *, environment: Mapping[str, str] | None = None) -> None:
        self.devices = devices
        self.kills: Counter[str] = Counter()  # by process, since `sender up` was started last
        self._rehearsal = _Beside(scenario=SCENARIO, workers=WORKERS, environment=_VARIABLES | dict(environment or {}))
        self._again: subprocess.Popen[bytes] | None = None
        self._runs = 1
        self._frozen: list[psutil.Process] = []

    def __enter__(self) -> Self:
        self._rehearsal.__enter__()
        self.data_dir = self._rehearsal.data_dir
        self.simulator = self._rehearsal.simulator
        self.sender = self._rehearsal.sender
        try:
            self._database_url = self.settings.require_database_url()
            self.books = self.open_books()
            self.sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=self._rehearsal.key_file)
            self.sender.devices.import_file(self._rehearsal.write_devices(self.devices), app=BUNDLE_ID)
        except BaseException:
            self._rehearsal.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.thaw()
        try:
            self.books.close()
            if self._again is not None:
                stop_process(self._again)
        finally:
            self._rehearsal.__exit__(kind, error, trace)

    # --- campaigns --------------------------------------------------------------------------------------------------

    def start_campaign(
        self, key: str, *, rate: float | None, after: int = 0, delivery: str = "at_least_once"
    ) -> Campaign:
        """A campaign to every device, given back as soon as APNs has seen `after` pushes of it. Another one, if this
        process stood still and it was over by then."""
        payload = Payload(alert=Alert(title="Hello", body="World"))
        for name in (key, f"{key}-again", f"{key}-once-more"):
            self.simulator.control.reset()
            campaign = self.sender.campaigns.enqueue(BUNDLE_ID, key=name, payload=payload, rate=rate, delivery=delivery)
            if not after:
                return campaign
            until(lambda: self.requests() >= after, f"{after} pushes of {key}", pause=0.005)
            if self.requests() < self.devices:
                return campaign
            self.wait(name)
        raise AssertionError("each campaign was over before anything could happen to it")

    def requests(self) -> int:
        """How many pushes APNs has seen of this campaign."""
        return self.simulator.control.counters().requests

    def wait(self, key: str, *, timeout: float = 60.0) -> Report:
        """Wait for a campaign's end, also while the database is away."""
        end = time.monotonic() + timeout
        while True:
            try:
                return self.sender.campaigns.wait(key, timeout=max(0.1, end - time.monotonic()))
            except (DatabaseUnavailableError, psycopg.OperationalError):
                assert time.monotonic() < end, "the database does not come back"
                time.sleep(0.1)

    def end_campaigns(self) -> None:
        """Cancel what is still under way."""
        for row in self.sender.campaigns.list():
            if row.finished_at is None:
                self.sender.campaigns.cancel(row.key)
                self.wait(row.key)

    # --- processes --------------------------------------------------------------------------------------------------

    def process(self, name: str) -> psutil.Process:
        """A child of `sender up` by its name: control, beat, priority, campaign-1 … Waits while it starts anew."""
        found: list[psutil.Process] = []

        def look() -> bool:
            found.clear()
            written = json.loads((self.data_dir / PROCESSES_FILE).read_text())["processes"]
            with suppress(psutil.NoSuchProcess):
                found.extend(psutil.Process(each["pid"]) for each in written if each["name"] == name)
            return bool(found) and alive(found[0])

        until(look, f"the process {name}", timeout=60.0)
        return found[0]

    def server(self, program: str) -> psutil.Process:
        """`postgres` (its postmaster) or `valkey-server`. Waits while it starts anew."""
        found: list[psutil.Process] = []

        def look() -> bool:
            with suppress(psutil.NoSuchProcess):
                found[:] = [child for child in self.up.children() if child.name() == program and alive(child)]
            return bool(found)

        until(look, f"the server {program}", timeout=60.0)
        return found[0]

    def kill(self, name: str) -> None:
        """SIGKILL for a child by its name."""
        process = self.process(name)
        self.kills[name] += 1
        with suppress(*_GONE):
            process.send_signal(signal.SIGKILL)

    def kill_everything(self) -> None:
        """SIGKILL for `sender up`, every process that it runs, and both servers, at once."""
        up = self.up
        for process in (up, *up.children(recursive=True)):
            with suppress(*_GONE):
                process.send_signal(signal.SIGKILL)
        up.wait(60)

    @property
    def up(self) -> psutil.Process:
        """`sender up` itself."""
        return psutil.Process(int(running_servers(self.data_dir)["pid"]))

    @property
    def apns(self) -> psutil.Process:
        """The simulator's process."""
        return psutil.Process(self.simulator.pid)

    @contextmanager
    def frozen(self, *processes: psutil.Process) -> Iterator[None]:
        """Meanwhile these processes stand still."""
        for process in processes:
            with suppress(*_GONE):
                process.suspend()
            self._frozen.append(process)
        try:
            yield
        finally:
            self.thaw(*processes)

    def thaw(self, *processes: psutil.Process) -> None:
        """Have these go on, or everything that stands still."""
        for process in processes or tuple(self._frozen):
            with suppress(*_GONE):
                process.resume()
            if process in self._frozen:
                self._frozen.remove(process)

    @contextmanager
    def grants_held(self) -> Iterator[None]:
        """Whoever asks for a grant waits for it."""
        with suppress(psycopg.OperationalError), psycopg.connect(self.settings.require_database_url()) as connection:
            connection.execute("SELECT FROM sender.limits FOR UPDATE")
            yield

    @contextmanager
    def nobody_revives(self) -> Iterator[None]:
        """What dies meanwhile stays dead."""
        with self.frozen(self.up):
            yield

    @property
    def valkey(self) -> redis.Redis:
        """A client of the broker."""
        return redis.Redis.from_url(self.settings.require_broker_url(), socket_timeout=5, socket_connect_timeout=5)

    def log(self, name: str) -> str:
        """The log of a child or server."""
        return (self.data_dir / "logs" / f"{name}.log").read_text(errors="replace")

    def restart(self) -> None:
        """Stop `sender up` as a user does and start it again: what died often is no longer put off."""
        up = self.up
        up.terminate()
        up.wait(90)
        self.start_again()

    def start_again(self) -> None:
        """`sender up` on the same data directory."""
        if self._again is not None:
            self._again.wait(60)
            stop_process(self._again)
        self._runs += 1
        self.kills.clear()
        self._again = start_up(
            *("--no-flower", "--workers", str(WORKERS)),
            log=self._rehearsal.directory / f"up-{self._runs}.log",
            environment=self._rehearsal.environment,
        )

    def open_books(self) -> Books:
        """A reader of the database, for one thread."""
        return Books(self._database_url)

    @property
    def settings(self) -> Settings:
        """The settings of the running stack."""
        return load_settings(data_dir=self.data_dir)


def alive(process: psutil.Process) -> bool:
    """Whether it runs, and is not only waiting to be buried."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def until(happened: Callable[[], Any], what: str, *, timeout: float = 30.0, pause: float = 0.05) -> None:
    """Wait for something. Fails when it does not come."""
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(pause)
