"""A database that is away, has no connection left, or comes back: waited for, and named."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from sender.client import Sender
from sender.doctor.servers import check_database
from sender.engine import recording
from sender.engine.delivery import send_batch
from sender.errors import DatabaseUnavailableError, SchemaVersionError
from sender.model import ACCEPTED, Rejected
from sender.settings import Settings
from sender.stack.account import forget_homes
from sender.stack.datadir import DataDirectory
from sender.stack.postgres import Postgres
from sender.store import batches, devices
from sender.store.database import Database
from sender.store.migrate import migrate
from sender.store.outages import is_away, is_outage
from tests.integration.engine import Engine, engine_on, token_of

#: What the small server has for ordinary roles.
CONNECTIONS = 8


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


@pytest.fixture(scope="module")
def small_url() -> Iterator[str]:
    """A PostgreSQL with few connections, and a schema."""
    directory = Path(tempfile.mkdtemp(prefix="sender-tests-", dir="/tmp"))
    data = DataDirectory(directory)
    data.create()
    server = Postgres(data, durable=False, connections=CONNECTIONS)
    server.start()
    try:
        migrate(server.url, "sender")
        yield server.url
    finally:
        server.stop(now=True)
        forget_homes(data)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def crowd(small_url: str) -> Iterator[list[psycopg.Connection[Any]]]:
    """Others, who take every connection that there is."""
    taken: list[psycopg.Connection[Any]] = []
    try:
        while True:
            taken.append(psycopg.connect(small_url))
    except psycopg.OperationalError:
        pass
    yield taken
    for connection in taken:
        connection.close()


def test_too_many_connections_are_named_with_what_to_do(small_url: str, crowd: list[psycopg.Connection[Any]]) -> None:
    database = Database(small_url, schema="sender", timeout=1.0)
    try:
        expected = pytest.raises(DatabaseUnavailableError, match=r"no connection left.*max_connections")
        with expected, database.transaction():
            pass
    finally:
        database.close()
    (finding,) = check_database(Settings(database_url=small_url))  # type: ignore[arg-type]
    assert "no connection left" in finding.message and "max_connections" in (finding.advice or "")


def test_a_database_that_has_a_connection_again_is_used_again(
    small_url: str, crowd: list[psycopg.Connection[Any]]
) -> None:
    database = Database(small_url, schema="sender", timeout=30.0)
    free = threading.Timer(1.0, lambda: [connection.close() for connection in crowd[:3]])
    free.start()
    try:
        with database.transaction() as transaction:
            assert transaction.execute("SELECT 1").fetchone() == (1,)
    finally:
        free.join()
        database.close()


def test_a_pool_whose_connections_are_all_busy_says_so(database: Database) -> None:
    small = Database(database.url, schema=database.schema, pool_size=1, timeout=1.0)
    try:
        expected = pytest.raises(DatabaseUnavailableError, match="SENDER_DATABASE_POOL_SIZE")
        with small.transaction(), expected, small.transaction():
            pass
    finally:
        small.close()


def test_crowded_connections_are_a_warning_of_doctor(small_url: str) -> None:
    others = [psycopg.connect(small_url) for _ in range(CONNECTIONS - 4)]  # three are kept for superusers
    try:
        status = ""
        while status != "warning":  # PostgreSQL counts a little later
            findings = {each.message: each.status for each in check_database(Settings(database_url=small_url))}  # type: ignore[arg-type]
            (status,) = [status for message, status in findings.items() if "connections are in use" in message]
    finally:
        for connection in others:
            connection.close()


# --- answers wait in memory ------------------------------------------------------------------------------------------


def away(monkeypatch: pytest.MonkeyPatch, times: int | None) -> list[int]:
    """PostgreSQL is away whenever something is to be recorded, so often. Returns a list that grows by each try."""
    real, tries = recording.record, []

    def record(*arguments: Any, **options: Any) -> Any:
        tries.append(1)
        if times is None or len(tries) <= times:
            raise psycopg.OperationalError("the connection is lost")
        return real(*arguments, **options)

    def record_sent(*_: Any) -> None:
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(recording, "record", record)
    monkeypatch.setattr(recording.ledger, "record_sent", record_sent)  # together with others
    return tries


def test_answers_are_kept_through_an_outage_and_written_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(10)
    engine.enqueue()
    engine.start()
    tries = away(monkeypatch, 3)
    engine.work()
    assert len(tries) == 4
    assert engine.outcomes() == {"sent": 10} and set(engine.received.values()) == {1}


def test_a_claim_whose_answers_wait_beats_on(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    tries = away(monkeypatch, None)

    def work() -> None:
        with pytest.raises(psycopg.OperationalError):
            engine.work()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while not tries:
            time.sleep(0.02)
        engine.runtime.leases._beat()
        assert engine.rows("SELECT state, beats > 0 FROM {s}.batches") == [("claimed", True)]
    finally:
        engine.runtime.stopping.hurry()
        thread.join()


def test_a_process_that_must_end_gives_up_what_it_cannot_write(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    tries = away(monkeypatch, None)
    engine.runtime.stopping.hurry()
    with pytest.raises(psycopg.OperationalError):
        send_batch(engine.runtime, engine.queue.pop())
    assert len(tries) == 1
    assert engine.rows("SELECT state FROM {s}.batches") == [("claimed",)]  # until its lease ends


def test_an_outage_is_no_failure_of_the_batch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()

    def lost(*_: Any) -> Any:
        raise psycopg.OperationalError("the connection is lost")

    (batch,) = engine.queue
    with monkeypatch.context() as patch:
        patch.setattr(batches, "claim_together", lost)
        patch.setattr(batches, "targets", lost)
        with pytest.raises(psycopg.OperationalError):
            send_batch(engine.runtime, batch)
    assert engine.rows("SELECT state, failures FROM {s}.batches") == [("open", 0)]


def test_a_statement_that_is_wrong_is_a_failure_of_the_batch(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.add_devices(3)
    engine.enqueue()
    engine.start()
    (batch,) = engine.queue
    with monkeypatch.context() as patch:
        for name in ("_FRESH_TARGETS", "_FRESH_TARGETS_TOGETHER"):
            patch.setattr(batches, name, "SELECT no_such_column FROM {s}.devices")
        with capture_logs() as logs, pytest.raises(psycopg.errors.UndefinedColumn):
            send_batch(engine.runtime, batch)
    assert [log["event"] for log in logs] == ["group_broke", "claim_broke"]
    assert engine.rows("SELECT state, failures FROM {s}.batches") == [("open", 1)]


def test_a_wrong_statement_costs_the_answers_that_need_it_and_no_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_devices(4)
    engine.answer(lambda push: Rejected(status=400, reason="BadDeviceToken") if push.token == token_of(1) else ACCEPTED)
    engine.enqueue()
    engine.start()
    engine.runtime.stopping.hurry()  # whoever took it for an outage gives up, instead of waiting for its end
    monkeypatch.setattr(devices, "_QUARANTINE", "SELECT no_such_function(%(campaign)s)")
    send_batch(engine.runtime, engine.queue.pop())
    assert engine.outcomes() == {"sent": 3, "failed": 1}
    assert engine.report().in_flight == 0


def test_a_statement_that_meets_the_schema_of_another_version_waits_for_a_process_of_that_version(
    database: Database,
) -> None:
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.alembic_version SET version_num = 'newer'")
    with pytest.raises(SchemaVersionError, match="newer"), database.transaction() as transaction:
        transaction.execute("SELECT no_such_column FROM {s}.devices")


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (psycopg.OperationalError("server closed the connection"), True),
        (psycopg.errors.TooManyConnections("too many"), True),
        (psycopg.errors.DiskFull("no space"), True),
        (psycopg.errors.AdminShutdown("going down"), True),
        (psycopg.errors.DeadlockDetected("deadlock"), True),
        (psycopg.errors.ReadOnlySqlTransaction("a standby"), True),
        (psycopg.errors.InsufficientPrivilege("to be granted"), True),
        (psycopg.errors.LockNotAvailable("somebody has it"), True),
        (psycopg.errors.QueryCanceled("statement timeout"), True),
        (DatabaseUnavailableError("away"), True),
        (SchemaVersionError("migrated meanwhile"), True),
        (psycopg.errors.UndefinedColumn("ours"), False),
        (psycopg.errors.SyntaxError("ours"), False),
        (psycopg.errors.CardinalityViolation("a row twice"), False),
        (psycopg.errors.InFailedSqlTransaction("ours"), False),
        (psycopg.errors.UniqueViolation("twice"), False),
        (psycopg.errors.NumericValueOutOfRange("too large"), False),
        (psycopg.errors.ProgramLimitExceeded("too large"), False),
        (psycopg.DataError("a NUL"), False),
        (ValueError("ours"), False),
    ],
)
def test_an_outage_is_told_from_an_error_of_the_data_or_the_statement(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (psycopg.OperationalError("server closed the connection"), True),
        (psycopg.errors.TooManyConnections("too many"), True),
        (psycopg.errors.DiskFull("no space"), True),
        (psycopg.errors.AdminShutdown("going down"), True),
        (psycopg.errors.ReadOnlySqlTransaction("a standby"), True),  # heartbeats cannot be written there either
        (DatabaseUnavailableError("away"), True),
        (psycopg.errors.DeadlockDetected("deadlock"), False),
        (psycopg.errors.LockNotAvailable("somebody has it"), False),
        (psycopg.errors.UndefinedColumn("ours"), False),
        (ValueError("ours"), False),
    ],
)
def test_a_server_that_is_away_is_told_from_what_is_in_the_way_of_one_step(error: Exception, away: bool) -> None:
    assert is_away(error) is away


def test_a_host_that_vanishes_without_a_word_is_not_waited_for_longer_than_the_url_says(database: Database) -> None:
    def found(url: str) -> dict[str, str]:
        asked = Database(url, schema=database.schema)
        with contextlib.closing(asked), asked.transaction() as transaction:
            return transaction.connection.info.get_parameters()

    assert found(database.url).items() >= {"tcp_user_timeout": "30000", "keepalives_idle": "30"}.items()
    own = database.url + ("&" if "?" in database.url else "?") + "tcp_user_timeout=5000"
    assert found(own).items() >= {"tcp_user_timeout": "5000", "keepalives_idle": "30"}.items()
