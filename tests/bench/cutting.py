"""What it costs to cut an audience into batches: at its beginning, in the middle and at its end, for segments of all
and of one in a hundred of millions of devices. The store's own statements, in the fan-out's transactions; nothing is
sent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from structlog.testing import capture_logs

from sender.audience import Segment
from sender.client import Sender
from sender.engine.fanout import MOST_CUT, MOST_OPEN, WINDOW
from sender.engine.tick import tick
from sender.settings import Settings
from sender.stack.account import forget_homes
from sender.stack.datadir import DataDirectory
from sender.stack.postgres import Postgres
from sender.store import cut
from sender.store.database import Database
from sender.store.migrate import migrate
from tests.bench.filling import add_devices
from tests.bench.measure import cpu_seconds
from tests.bench.places import KEY_ID, TEAM_ID, Place
from tests.bench.programs.job import MESSAGE

APP = "com.example.cut"
SCHEMA = "bench"

#: By name; each is cut whole.
SEGMENTS = {
    "all": Segment.all(),
    "1 % by attribute": Segment.where(plan="gold"),
    "1 % by percentage": Segment.percentage(1, seed="bench"),
}

_DONE = """
WITH done AS (
    UPDATE {s}.batches b SET state = 'done' FROM {s}.campaigns c
    WHERE c.id = %(campaign)s AND b.campaign_id = c.id AND b.id > c.low_batch_id RETURNING b.id
) UPDATE {s}.campaigns SET low_batch_id = coalesce((SELECT max(id) FROM done), low_batch_id) WHERE id = %(campaign)s
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One transaction of the fan-out: devices that it cut, its time, and CPU of it and of its PostgreSQL backend."""

    devices: int
    seconds: float
    cpu: float  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One audience that was cut: CPU microseconds a device in the first, the middle and the last tenth of its steps."""

    segment: str
    devices: int  # in the table
    audience: int
    steps: int
    seconds: float
    beginning: float
    middle: float
    end: float
    longest: float  # seconds of the longest transaction

    @property
    def spread(self) -> float:
        """The dearest of the three to the cheapest."""
        costs = (self.beginning, self.middle, self.end)
        return max(costs) / min(costs)


def measure(place: Place, devices: int, say: Callable[[str], None]) -> Iterator[Cut]:
    """Cut each segment of so many devices."""
    with _database(place) as (database, sender):
        sender.apps.add(APP, team_id=TEAM_ID, key_id=KEY_ID, key_file=place.key_file)
        with database.transaction() as transaction:
            [(app_id,)] = transaction.execute("SELECT id FROM {s}.apps").fetchall()
        started = time.monotonic()
        add_devices(database, app_id, devices)
        say(f"{devices:,} devices written in {time.monotonic() - started:.0f} s")
        for name, segment in SEGMENTS.items():
            found = cut_one(database, sender, name, segment, devices)
            say(f"{name}: {found.beginning:.1f}, {found.middle:.1f}, {found.end:.1f} µs a device")
            yield found


def cut_one(database: Database, sender: Sender, name: str, segment: Segment, devices: int) -> Cut:
    """Cut one audience to its end, and give its batches back as done after every step, as workers would."""
    key = f"cut {name}"
    payload = {each: value for each, value in MESSAGE.items() if each != "sender"}
    sender.campaigns.enqueue(APP, key=key, payload=payload, audience=segment, rate=None)
    with capture_logs():  # standard output is for the tables
        tick(database)
    campaign_id = sender.campaigns.load(key).id
    steps: list[Step] = []
    finished = False
    while not finished:
        step, finished = _step(database, campaign_id)
        steps.append(step)
        with database.transaction() as transaction:
            transaction.execute(_DONE, {"campaign": campaign_id})
    sender.campaigns.cancel(key)
    return _figures(name, devices, steps)


def _step(database: Database, campaign_id: int) -> tuple[Step, bool]:
    started = time.perf_counter()
    with database.transaction() as transaction:
        backend = psutil.Process(transaction.connection.info.backend_pid)
        before = cpu_seconds(backend) + time.process_time()
        cutting = cut.hold(transaction, campaign_id, installation_rate=None)
        assert cutting is not None
        batches = min(MOST_OPEN, MOST_CUT // cutting.batch_size)
        count, finished = cut.cut(transaction, cutting, size=cutting.batch_size, batches=batches, window=WINDOW)
    cpu = cpu_seconds(backend) + time.process_time() - before
    return Step(devices=count, seconds=time.perf_counter() - started, cpu=cpu), finished


def _figures(name: str, devices: int, steps: list[Step]) -> Cut:
    tenth = max(1, len(steps) // 10)
    middle = (len(steps) - tenth) // 2

    def cost(some: list[Step]) -> float:
        return sum(step.cpu for step in some) / max(sum(step.devices for step in some), 1) * 1e6

    return Cut(
        segment=name,
        devices=devices,
        audience=sum(step.devices for step in steps),
        steps=len(steps),
        seconds=sum(step.seconds for step in steps),
        beginning=cost(steps[:tenth]),
        middle=cost(steps[middle : middle + tenth]),
        end=cost(steps[-tenth:]),
        longest=max(step.seconds for step in steps),
    )


@contextmanager
def _database(place: Place) -> Iterator[tuple[Database, Sender]]:
    with a_postgres(place, "cut") as url:
        database = Database(url, schema=SCHEMA, pool_size=1)
        settings = Settings(database_url=url, database_schema=SCHEMA, data_dir=place.directory)
        with contextlib.closing(database), Sender(settings=settings) as sender:
            yield database, sender


@contextmanager
def a_postgres(place: Place, name: str) -> Iterator[str]:
    """A PostgreSQL of its own, durable as always, with an empty schema: its URL."""
    data = DataDirectory(place.directory / name)
    data.create()
    server = Postgres(data)
    server.start()
    try:
        migrate(server.url, SCHEMA)
        yield server.url
    finally:
        server.stop(now=True)
        forget_homes(data)
