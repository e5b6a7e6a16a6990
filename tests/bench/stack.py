"""The real stack for measuring: `sender up` on a temporary data directory, apps of several sizes, campaigns.

Production tokens go to the one server and sandbox tokens to the other, so that one stack serves measurements of both.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import psutil
import psycopg

from sender.client import Sender
from sender.rehearsal import start_up, stop_process
from sender.settings import load_settings
from sender.store.database import Database
from tests.bench.measure import MEGABYTE, cpu_seconds, peak_memory
from tests.bench.places import KEY_ID, TEAM_ID, Place
from tests.bench.programs.job import MESSAGE
from tests.bench.servers import Server

_CAMPAIGN_WITHIN = 180.0
_keys = count(1)

_TIMES = """
SELECT c.started_at, c.finished_at, extract(epoch FROM max(b.finished_at) - c.started_at)::float8,
       coalesce(sum(b.sent), 0)::bigint, coalesce(sum(b.sent + b.rejected), 0)::bigint
FROM {s}.campaigns c JOIN {s}.batches b ON b.campaign_id = c.id WHERE c.key = %s GROUP BY c.id
"""

_SENT = "SELECT coalesce(sum(sent), 0)::bigint FROM {s}.batches"

_REVIVE = """
UPDATE {s}.devices SET state = 'active', state_reason = NULL, state_campaign_id = NULL WHERE state <> 'active'
"""

#: Devices straight into the table: importing them is not what is measured.
_DEVICES = """
INSERT INTO {s}.devices (app_id, token, environment, registered_at, last_seen_at)
SELECT a.id, md5(a.bundle_id || n) || md5(n || a.bundle_id), %(environment)s, now() - interval '60 days', now()
FROM {s}.apps a, generate_series(1, %(count)s) AS n WHERE a.bundle_id = %(app)s
"""


class CampaignStuckError(Exception):
    """Raised when a campaign does not come to its end, or lost something on the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One campaign that was sent."""

    devices: int
    seconds: float  # from its start until the last batch was recorded
    until_finished: float  # … until the campaign was found to be finished: the report's times
    sent: int
    cpu: dict[str, float]  # CPU microseconds a push by kind of process

    @property
    def rate(self) -> float:
        """Devices a second."""
        return self.devices / self.seconds

    @property
    def cpu_sum(self) -> float:
        """CPU microseconds a push of everything but the server that stands for APNs."""
        return sum(cost for kind, cost in self.cpu.items() if kind != "APNs")


@dataclass(slots=True, kw_only=True)
class Stack:
    """A running stack."""

    place: Place
    workers: int
    sender: Sender
    database: Database
    process: subprocess.Popen[bytes]
    servers: tuple[Server, ...]
    peaks: dict[str, int] = field(default_factory=dict)  # bytes by kind of process

    def send(self, app: str, devices: int, *, batch_size: int | None = None) -> Run:
        """Send one campaign to all devices of an app, without a limit of its rate, and wait for its end."""
        key = f"bench-{next(_keys)}"
        before = self._cpu()
        self.sender.campaigns.enqueue(app, key=key, payload=MESSAGE_WITHOUT_OURS, rate=None, batch_size=batch_size)
        report = self.sender.campaigns.wait(key, timeout=_CAMPAIGN_WITHIN)
        after = self._cpu()
        with self.database.transaction() as transaction:
            row = transaction.execute(_TIMES, (key,)).fetchone()
        if row is None or row[4] != devices or not report.finished:
            raise CampaignStuckError(f"{devices} devices, and the report says {report}")
        started, finished, seconds, sent, _ = row
        cpu = {kind: (spent - before.get(kind, 0.0)) / devices * 1e6 for kind, spent in after.items()}
        self._look_at_memory()
        return Run(
            devices=devices,
            seconds=seconds,
            until_finished=(finished - started).total_seconds(),
            sent=sent,
            cpu=cpu,
        )

    def sent_so_far(self) -> int:
        """How many pushes of all campaigns are recorded as sent."""
        with self.database.transaction() as transaction:
            row = transaction.execute(_SENT).fetchone()
        return int(row[0]) if row else 0

    def revive_devices(self) -> None:
        """Make devices that APNs called dead active again, for the next round."""
        with self.database.transaction() as transaction:
            transaction.execute(_REVIVE)
        self.vacuum()

    def vacuum(self) -> None:
        """What autovacuum would do at a time of its own."""
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            for table in ("devices", "batches", "campaigns"):
                connection.execute(f"VACUUM (ANALYZE) {self.database.schema}.{table}")

    def worker_processes(self) -> list[psutil.Process]:
        """The campaign workers."""
        return [process for kind, process in self.processes() if kind == "worker"]

    def processes(self) -> list[tuple[str, psutil.Process]]:
        found = [("APNs", psutil.Process(server.pid)) for server in self.servers]
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                found.append((_kind(process), process))
        return found

    def _cpu(self) -> dict[str, float]:
        spent: dict[str, float] = {}
        for kind, process in self.processes():
            spent[kind] = spent.get(kind, 0.0) + cpu_seconds(process)
        return spent

    def _look_at_memory(self) -> None:
        for kind, process in self.processes():
            self.peaks[kind] = max(self.peaks.get(kind, 0), peak_memory(process.pid))


MESSAGE_WITHOUT_OURS = {name: value for name, value in MESSAGE.items() if name != "sender"}


@contextmanager
def run_stack(
    place: Place, *, workers: int, production: Server, sandbox: Server, more: Mapping[str, str] | None = None
) -> Iterator[Stack]:
    """`sender up` with so many campaign workers, stopped at the end; what it stores stays for the next one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SENDER_")}
    environment = kept | {
        "SENDER_DATA_DIR": str(place.data_dir),
        "SENDER_APNS_PRODUCTION_URL": production.url,
        "SENDER_APNS_SANDBOX_URL": sandbox.url,
        "SENDER_APNS_CA_FILE": str(place.ca_file),
        **(more or {}),
    }
    up = ("--no-flower", "--workers", str(workers))
    process = start_up(*up, log=place.directory / "up.log", environment=environment)
    try:
        settings = load_settings(data_dir=place.data_dir)
        database = Database(settings.require_database_url(), schema=settings.database_schema, pool_size=2)
        with Sender(settings=settings) as sender, contextlib.closing(database):
            yield Stack(
                place=place,
                workers=workers,
                sender=sender,
                database=database,
                process=process,
                servers=tuple({server.pid: server for server in (production, sandbox)}.values()),
            )
    finally:
        stop_process(process)


def add_app(stack: Stack, app: str, *, devices: int, environment: str) -> None:
    """An app with so many devices, unless it is there."""
    if any(each.bundle_id == app for each in stack.sender.apps.list()):
        return
    stack.sender.apps.add(app, team_id=TEAM_ID, key_id=KEY_ID, key_file=stack.place.key_file)
    with stack.database.transaction() as transaction:
        transaction.execute(_DEVICES, {"app": app, "environment": environment, "count": devices})
    stack.vacuum()


def in_megabytes(peaks: Mapping[str, int]) -> str:
    """Peak memory by kind of process, in words."""
    return ", ".join(f"{kind} {peak / MEGABYTE:.0f} MB" for kind, peak in sorted(peaks.items()))


def _kind(process: psutil.Process) -> str:
    words: list[str] = process.cmdline()
    if "--hostname" in words:
        return words[words.index("--hostname") + 1].partition("@")[0].partition("-")[0].replace("campaign", "worker")
    name = process.name()
    if name.startswith("postgres"):
        return "PostgreSQL"
    if name.startswith(("valkey", "redis")):
        return "Valkey"
    return "beat" if "beat" in words else "other"
