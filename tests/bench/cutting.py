"""What it costs to cut an audience into batches: at its beginning, in the middle and at its end, for segments of all
and of one in a hundred of millions of devices. The store's own statements, in the fan-out's transactions; nothing is
sent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

from sender.audience import Segment
from sender.client import Sender
from sender.engine.fanout import MOST_CUT, MOST_OPEN, RESERVED, WINDOW
from sender.engine.tick import tick
from sender.settings import Settings
from sender.stack.datadir import DataDirectory
from sender.stack.postgres import Postgres
from sender.store import cut, publishing
from sender.store.database import Database
from sender.store.migrate import migrate
from tests.bench.filling import add_devices
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

_DONE = "UPDATE {s}.batches SET state = 'done' WHERE campaign_id = %s AND state <> 'done'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """One audience that was cut: microseconds a device in the first, the middle and the last tenth of its devices."""

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
    tick(database)
    campaign_id = sender.campaigns.load(key).id
    steps: list[tuple[int, float]] = []
    finished = False
    while not finished:
        started = time.perf_counter()
        count, finished = _step(database, campaign_id)
        steps.append((count, time.perf_counter() - started))
        with database.transaction() as transaction:
            transaction.execute(_DONE, (campaign_id,))
    sender.campaigns.cancel(key)
    return _figures(name, devices, steps)


def _step(database: Database, campaign_id: int) -> tuple[int, bool]:
    with database.transaction() as transaction:
        cutting = cut.hold(transaction, campaign_id, installation_rate=None)
        assert cutting is not None
        publishing.look(
            transaction, campaign_id=campaign_id, app_id=cutting.app_id, low=cutting.low_batch_id, seconds=RESERVED
        )
        batches = min(MOST_OPEN, MOST_CUT // cutting.batch_size)
        count, finished = cut.cut(transaction, cutting, size=cutting.batch_size, batches=batches, window=WINDOW)
        publishing.take(transaction, campaign_id, cutting.low_batch_id, most=MOST_OPEN)
    return count, finished


def _figures(name: str, devices: int, steps: list[tuple[int, float]]) -> Cut:
    tenth = max(1, len(steps) // 10)
    middle = len(steps) // 2

    def cost(some: list[tuple[int, float]]) -> float:
        return median(seconds / max(count, 1) for count, seconds in some) * 1e6

    return Cut(
        segment=name,
        devices=devices,
        audience=sum(count for count, _ in steps),
        steps=len(steps),
        seconds=sum(seconds for _, seconds in steps),
        beginning=cost(steps[:tenth]),
        middle=cost(steps[middle : middle + tenth]),
        end=cost(steps[-1 - tenth : -1] or steps),  # the last step has what is left
        longest=max(seconds for _, seconds in steps),
    )


@contextmanager
def _database(place: Place) -> Iterator[tuple[Database, Sender]]:
    """A PostgreSQL of its own, durable as always, with an empty schema."""
    data = DataDirectory(place.directory / "cut")
    data.create()
    server = Postgres(data)
    server.start()
    try:
        migrate(server.url, SCHEMA)
        database = Database(server.url, schema=SCHEMA, pool_size=2)
        settings = Settings(database_url=server.url, database_schema=SCHEMA, data_dir=data.path)
        with contextlib.closing(database), Sender(settings=settings) as sender:
            yield database, sender
    finally:
        server.stop(now=True)
