"""From the first migration to the newest, with an installation that was in the middle of its work."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from sender.client import Sender
from sender.errors import SchemaVersionError
from sender.settings import Settings
from sender.store.database import Database
from sender.store.migrate import migrate, status
from tests.integration import first_schema
from tests.integration.engine import Engine

PUSHABLE = 400 - 30  # without the invalid, the quarantined and the opted out


@pytest.fixture
def schema(postgres_url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    first_schema.make(postgres_url, name)
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture
def engine(postgres_url: str, valkey_url: str, schema: str) -> Iterator[Engine]:
    """An upgraded installation with a worker of this version."""
    migrate(postgres_url, schema)
    settings = Settings(
        database_url=SecretStr(postgres_url),
        database_schema=schema,
        broker_url=SecretStr(valkey_url),
        queue_prefix=f"q{uuid.uuid4().hex[:8]}",
        lease=3,
    )
    database = Database(postgres_url, schema=schema)
    with Sender(settings=settings) as sender:
        engine = Engine(settings, database, sender)
        yield engine
        engine.runtime.close()
    database.close()


def test_every_row_is_there_afterwards_as_it_was(postgres_url: str, schema: str) -> None:
    before = first_schema.contents(postgres_url, schema)
    assert all(before.values())
    assert migrate(postgres_url, schema).current == "0001"
    assert status(postgres_url, schema).up_to_date
    after = first_schema.contents(postgres_url, schema)
    for table, rows in before.items():
        kept = [{name: row[name] for name in rows[0] if name in row} for row in after[table]]
        key = sorted(rows[0])
        assert sorted(kept, key=lambda row: [str(row[name]) for name in key]) == sorted(
            rows, key=lambda row: [str(row[name]) for name in key]
        ), table


def test_a_credential_that_rested_goes_on_resting(postgres_url: str, schema: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        held = connection.execute("SELECT credential, until, cause, since FROM holds WHERE until > now()").fetchall()
    migrate(postgres_url, schema)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        rests = "SELECT credential, until, cause, since FROM breakers WHERE state = 'open'"
        assert connection.execute(rests).fetchall() == held
        assert len(held) == 1
        assert connection.execute("SELECT to_regclass('holds')").fetchone() == (None,)


def test_a_schema_of_the_second_migration_is_refused_and_goes_on_where_it_was(postgres_url: str, schema: str) -> None:
    first_schema.upgrade(postgres_url, schema, "0002")
    settings = Settings(database_url=SecretStr(postgres_url), database_schema=schema)
    with Sender(settings=settings) as sender, pytest.raises(SchemaVersionError, match=r"0002.*run `sender migrate`"):
        sender.campaigns.report("running")
    migrate(postgres_url, schema)
    with Sender(settings=settings) as sender:
        sender.campaigns.pause("running")
        sender.campaigns.resume("running")
        sender.apps.set_rate("com.example.news", 100)
        assert sender.campaigns.report("running").state == "running"


def test_what_was_running_completes_and_reaches_everybody_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what a worker of the old version held when it died, with some of its rows written."""
    clock = [1000.0]
    monkeypatch.setattr("sender.engine.reclaiming.lease_clock", lambda: clock[0])
    was_sent = {device for (device,) in engine.rows("SELECT device_id FROM {s}.deliveries WHERE campaign_id = 2")}
    for _ in range(100):
        engine.start()
        engine.work()
        engine.sweep()
        engine.bring_forward()
        if engine.report("running").finished:
            break
        clock[0] += engine.settings.lease / 2 - 1
        time.sleep(0.1)  # nothing is taken back within a lease of the server's own start
    report = engine.report("running")
    assert (report.state, report.audience, report.sent) == ("completed", PUSHABLE, PUSHABLE)
    pushed = {int(token, 16): count for token, count in engine.received.items() if not token.startswith("ffff")}
    assert set(pushed.values()) == {1}
    assert not set(pushed) & was_sent
    assert len(pushed) + len(was_sent) == PUSHABLE


def test_nothing_is_sent_with_a_credential_that_rests_until_its_time_is_over(engine: Engine) -> None:
    engine.run(rounds=3)
    assert not [token for token in engine.received if token.startswith("ffff")]
    engine.bring_forward()
    for _ in range(10):
        engine.bring_forward()
        engine.run(rounds=2)
    report = engine.report("resting")
    assert (report.state, report.sent, report.audience) == ("completed", 20, 20)


def test_what_was_paused_finished_or_not_begun_is_as_it_was(engine: Engine) -> None:
    finished = engine.report("finished")
    assert (finished.state, finished.sent, finished.rejected, finished.by_reason) == (
        "completed",
        72,
        2,
        {"Unregistered": 2},
    )
    assert engine.report("paused").pending == 37
    assert [engine.sender.campaigns.load(key).state for key in ("paused", "later", "draft")] == [
        "paused",
        "scheduled",
        "draft",
    ]
    engine.sender.campaigns.resume("paused")
    engine.run(rounds=10)
    assert engine.report("paused").sent == 37
    assert engine.report("paused").state == "completed"
    assert len(engine.sender.activity.read(campaign="finished", everything=True)) == 74
    assert engine.sender.users.show("u-11").devices
    assert engine.sender.changelog.latest(campaign="finished")
