"""The questions of the command line, asked of an installation with ten thousand campaigns behind it: how long each
takes, and how many rows PostgreSQL looks at for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

from structlog.testing import capture_logs

from sender.client import Sender
from sender.engine.retention import retain
from sender.settings import Settings
from sender.store.database import Database
from tests.bench import history, questions
from tests.bench.cutting import SCHEMA, a_postgres
from tests.bench.history import History
from tests.bench.places import Place
from tests.bench.watching import watched

_TIMES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question: milliseconds (the median of three), and rows looked at by table, the largest three."""

    question: str
    milliseconds: float
    rows: dict[str, int]


def measure(place: Place, of: History, say: Callable[[str], None]) -> Iterator[Asked]:
    """Write the history, and ask."""
    with a_postgres(place, "asked") as url:
        database = Database(url, schema=SCHEMA, pool_size=2)
        settings = Settings(
            database_url=url, database_schema=SCHEMA, broker_url="redis://127.0.0.1:1/0", data_dir=place.directory
        )
        with contextlib.closing(database), Sender(settings=settings) as sender:
            started = time.monotonic()
            history.write(database, of)
            say(
                f"{of.campaigns:,} campaigns, {of.ledger:,} deliveries, {of.changes:,} changes and {of.devices:,} "
                f"devices written in {time.monotonic() - started:.0f} s"
            )
            asked = {
                **questions.narrow(sender, database, settings, of),
                **questions.wide(sender),
                **questions.huge(sender),
            }
            for name, ask in asked.items():
                yield _ask(name, ask)
            yield _retain(database, settings)


def _retain(database: Database, settings: Settings) -> Asked:
    """Everything that retention does at once, by the rows that it went through, dropped months not counted."""
    kept = settings.model_copy(update={"retain_errors": None})
    count = "SELECT count(*) FROM {s}.deliveries"
    with database.transaction() as transaction:
        [(before,)] = transaction.execute(count).fetchall()
    started = time.perf_counter()
    with capture_logs():
        for _ in retain(database, kept):
            pass
    took = (time.perf_counter() - started) * 1000
    with database.transaction() as transaction:
        [(after,)] = transaction.execute(count).fetchall()
    return Asked(question="retention --run, sent rows removed", milliseconds=took, rows={"deliveries": before - after})


def _ask(name: str, ask: Callable[[], object]) -> Asked:
    took = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        ask()
        took.append((time.perf_counter() - started) * 1000)
    with watched() as looked:
        ask()
    return Asked(question=name, milliseconds=median(took), rows=dict(looked.rows.most_common(3)))
