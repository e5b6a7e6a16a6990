"""What the command line and the workers ask of a large installation, counted in rows that PostgreSQL looks at.

Rows, not times and not the planner's words: a question that must not depend on how much else there is, may not look
at much else.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from sender import Alert, Payload, Segment, Sender
from sender.settings import Settings
from sender.store.database import Database
from sender.store.migrate import migrate
from tests.bench import history, questions
from tests.bench.history import BIG, FEW, SMALL
from tests.bench.watching import Looked, watched
from tests.integration.engine import Engine

#: Rows of each table that a question may look at, whatever it holds. Campaigns are at most the thousand that a log is
#: looked through for; apps and credentials are few.
MOST = {"deliveries": 2_000, "changelog": 2_000, "devices": 1_000, "batches": 200, "retries": 1_500}
WHOLE = {"deliveries": 0, "changelog": 0, "devices": 0, "batches": 0}


@pytest.fixture(scope="module")
def old(postgres_url: str, valkey_url: str) -> Iterator[Settings]:
    """Settings of an installation that is large compared with what a question asks for."""
    schema = f"test_{uuid.uuid4().hex[:12]}"
    migrate(postgres_url, schema)
    database = Database(postgres_url, schema=schema)
    history.write(database, FEW)
    database.close()
    yield Settings(
        database_url=SecretStr(postgres_url),
        database_schema=schema,
        broker_url=SecretStr(valkey_url),
        queue_prefix=f"q{uuid.uuid4().hex[:8]}",
    )
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


@pytest.fixture(scope="module")
def database(old: Settings) -> Iterator[Database]:
    database = Database(old.require_database_url(), schema=old.database_schema)
    yield database
    database.close()


@pytest.fixture(scope="module")
def sender(old: Settings) -> Iterator[Sender]:
    with Sender(settings=old) as sender:
        yield sender


def too_many(looked: Looked, most: dict[str, int] = MOST) -> dict[str, Any]:
    """Tables of which more rows were looked at than may be, with the statement that did."""
    found = {table: looked.worst[table] for table, limit in most.items() if looked.rows[table] > limit}
    whole = {table: rows for table, rows in looked.whole.items() if rows > WHOLE.get(table, 1_000)}
    return found | {f"whole {table}": looked.worst[table] for table in whole if table in WHOLE}


def test_no_question_looks_at_more_than_it_asks_for(sender: Sender, database: Database, old: Settings) -> None:
    found = {}
    for name, ask in questions.narrow(sender, database, old, FEW).items():
        with watched() as looked:
            ask()
        if faults := too_many(looked):
            found[name] = faults
    assert found == {}


def test_a_question_about_a_campaign_looks_into_one_month_of_the_ledger(sender: Sender) -> None:
    for ask in (
        lambda: sender.activity.read(campaign="campaign-5"),
        lambda: sender.activity.read(campaign="campaign-5", everything=True),
        lambda: sender.campaigns.count(SMALL, audience=Segment.not_sent("campaign-5")),
    ):
        with watched() as looked:
            ask()
        assert len(looked.partitions["deliveries"]) == 1


def test_what_counts_the_devices_of_an_app_looks_at_those_of_no_other(sender: Sender) -> None:
    of_app = FEW.devices // 100
    for name, ask in questions.wide(sender).items():
        with watched() as looked:
            ask()
        assert looked.rows["devices"] == of_app, name
        assert looked.rows["deliveries"] <= 2 * FEW.deliveries, name


def test_a_watch_would_notice_a_question_without_an_index(database: Database) -> None:
    with watched() as looked, database.transaction() as transaction:
        transaction.execute("SELECT count(*) FROM {s}.deliveries WHERE device_id = 17")
        transaction.execute("SELECT FROM {s}.devices WHERE locale = 'xx' LIMIT 1")
    assert too_many(looked).keys() >= {"deliveries", "whole deliveries", "devices", "whole devices"}


def test_the_workers_look_at_their_own_campaign_only(sender: Sender, database: Database, old: Settings) -> None:
    """A campaign to a hundred devices, from tick to its end, among those of years: claims, cut, records, sweeps."""
    engine = Engine(old.model_copy(update={"retain_sent": None, "retain_errors": None}), database, sender)
    engine.sweep()  # what was open before is published, and partitions are made
    engine.queue.clear()
    with database.transaction() as transaction:
        transaction.execute("ANALYZE {s}.batches")
    users = [f"u-{number}" for number in range(1, 51)]
    engine.sender.campaigns.enqueue(
        BIG, key="now", payload=Payload(alert=Alert(title="Hello")), audience=Segment.users(*users), rate=None
    )
    with watched() as looked:
        for _ in range(2):
            engine.start()
            engine.work()
            engine.sweep()
    report = engine.sender.campaigns.show("now")
    engine.runtime.close()
    assert report.finished and report.sent == report.audience > 50
    assert (
        too_many(looked, {"deliveries": 500, "devices": 3_000, "batches": 2_000, "retries": 100, "changelog": 100})
        == {}
    )
