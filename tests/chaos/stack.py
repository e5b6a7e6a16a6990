"""The stack of the chaos tests: a rehearsal whose processes can be found, hurt and started again."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import psutil
import psycopg
import redis

from sender import Alert, Payload
from sender.campaigns import Campaign
from sender.errors import DatabaseUnavailableError
from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, Rehearsal
from sender.settings import Settings, load_settings, running_servers
from sender.simulator import Scenario
from sender.stack.children import PROCESSES_FILE
from sender.store.reports import Report

#: Seconds of a lease: short, so that what a dead worker held is taken back within the test.
LEASE = 3.0
WORKERS = 2
#: Answers take a while, as they do from far away: there is always something in flight when a plug is pulled.
SCENARIO = Scenario(seed=5, latency_ms=30)
#: Batches in flight in one campaign worker.
THREADS: int = Settings.model_fields["worker_threads"].default

_SENDER = (sys.executable, "-P", "-c", "from sender.cli import main; main()")
_OF_CAMPAIGN = "JOIN sender.campaigns c ON c.id = t.campaign_id WHERE c.key = %s"
_LEDGER = f"SELECT t.outcome, count(*) FROM sender.deliveries t {_OF_CAMPAIGN} GROUP BY 1"
_BATCHES = f"SELECT t.id, t.state FROM sender.batches t {_OF_CAMPAIGN} AND t.state <> 'done'"
_RETRIES = f"SELECT t.device_id, t.reason FROM sender.retries t {_OF_CAMPAIGN}"


class ChaosStack:
    """`sender up` with an app and devices, all of which the simulated APNs accepts."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self._rehearsal = Rehearsal(
            scenario=Scenario(seed=5), workers=WORKERS, environment={"SENDER_LEASE": f"{LEASE}"}
        )
        self._again: subprocess.Popen[bytes] | None = None
        self._runs = 1

    def __enter__(self) -> Self:
        self._rehearsal.__enter__()
        self.data_dir = self._rehearsal.data_dir
        self.simulator = self._rehearsal.simulator
        self.sender = self._rehearsal.sender
        try:
            self.sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=self._rehearsal.key_file)
            self.sender.devices.import_file(self._rehearsal.write_devices(self.devices), app=BUNDLE_ID)
        except BaseException:
            self._rehearsal.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._again is not None:
            self._again.terminate()
            self._again.wait(60)
        self._rehearsal.__exit__(kind, error, trace)

    # --- campaigns --------------------------------------------------------------------------------------------------

    def start_campaign(self, key: str, *, rate: float | None, after: int) -> Campaign:
        """A campaign to every device, given back as soon as APNs has seen `after` pushes of it."""
        self.simulator.control.reset()
        payload = Payload(alert=Alert(title="Hello", body="World"))
        campaign = self.sender.campaigns.enqueue(BUNDLE_ID, key=key, payload=payload, rate=rate)
        until(lambda: self.requests() >= after, f"{after} pushes of {key}", pause=0.005)
        assert self.requests() < self.devices, "the campaign was over before anything could happen to it"
        return campaign

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

    def ledger(self, key: str) -> dict[str, int]:
        """Outcome -> rows of the ledger."""
        return dict(self._rows(_LEDGER, key))

    def open_work(self, key: str) -> list[tuple[Any, ...]]:
        """Batches that are not done, and retries that wait."""
        return [*self._rows(_BATCHES, key), *self._rows(_RETRIES, key)]

    def _rows(self, statement: str, key: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._settings().require_database_url()) as connection:
            return connection.execute(statement, (key,)).fetchall()

    # --- processes --------------------------------------------------------------------------------------------------

    def process(self, name: str) -> psutil.Process:
        """A child of `sender up` by its name: control, beat, priority, campaign-1 … Waits while it starts anew."""
        found: list[psutil.Process] = []

        def look() -> bool:
            written = json.loads((self.data_dir / PROCESSES_FILE).read_text())["processes"]
            with suppress(psutil.NoSuchProcess):
                found.extend(psutil.Process(each["pid"]) for each in written if each["name"] == name)
            return bool(found) and found[0].is_running()

        until(look, f"the process {name}")
        return found[0]

    def server(self, program: str) -> psutil.Process:
        """`postgres` (its postmaster) or `valkey-server`."""
        return next(child for child in self.up.children() if child.name() == program)

    @property
    def up(self) -> psutil.Process:
        """`sender up` itself."""
        return psutil.Process(int(running_servers(self.data_dir)["pid"]))

    @contextmanager
    def grants_held(self) -> Iterator[None]:
        """Whoever asks for a grant waits for it."""
        with suppress(psycopg.OperationalError), psycopg.connect(self._settings().require_database_url()) as connection:
            connection.execute("SELECT FROM sender.limits FOR UPDATE")
            yield

    @contextmanager
    def nobody_revives(self) -> Iterator[None]:
        """What dies meanwhile stays dead."""
        up = self.up
        up.suspend()
        try:
            yield
        finally:
            up.resume()

    @property
    def valkey(self) -> redis.Redis:
        """A client of the broker."""
        return redis.Redis.from_url(self._settings().require_broker_url())

    def log(self, name: str) -> str:
        """The log of a child or server."""
        return (self.data_dir / "logs" / f"{name}.log").read_text(errors="replace")

    def start_again(self) -> None:
        """`sender up` on the same data directory."""
        self._runs += 1
        log = self._rehearsal.directory / f"up-{self._runs}.log"
        with log.open("wb") as output:
            self._again = subprocess.Popen(
                [*_SENDER, "up", "--no-flower", "--workers", str(WORKERS)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._rehearsal.environment,
                start_new_session=True,
            )
        until(lambda: "ready" in log.read_text(errors="replace").splitlines(), f"`sender up`, see {log}", timeout=60)

    def _settings(self) -> Settings:
        return load_settings(data_dir=self.data_dir)


def until(happened: Callable[[], Any], what: str, *, timeout: float = 30.0, pause: float = 0.05) -> None:
    """Wait for something. Fails when it does not come."""
    end = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(pause)
