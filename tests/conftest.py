"""Real servers for the tests: one embedded PostgreSQL and one Valkey a session, a fresh schema and queues a test.

SENDER_TEST_DATABASE_URL and SENDER_TEST_BROKER_URL name other servers. Where the embedded ones cannot be had, CI fails
and a desk skips.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from psycopg import sql

from sender.client import Sender
from sender.errors import MissingExtraError
from sender.settings import Settings
from sender.stack.account import forget_homes
from sender.stack.datadir import DataDirectory
from sender.stack.postgres import Postgres
from sender.stack.valkey import Valkey
from sender.store.database import Database
from sender.store.migrate import migrate

signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C does: the servers are stopped

if not os.environ.get("CI"):  # where Hypothesis does the same by itself, and draws the same examples each time
    hypothesis_settings.register_profile(
        "a busy machine is no fault", deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    hypothesis_settings.load_profile("a busy machine is no fault")


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """What the developer has set for other installations must not reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("SENDER_") and not name.startswith("SENDER_TEST_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def test_servers_directory() -> Iterator[DataDirectory]:
    path = Path(tempfile.mkdtemp(prefix="sender-tests-", dir="/tmp"))
    data = DataDirectory(path)
    data.create()
    yield data
    forget_homes(data)
    shutil.rmtree(path, ignore_errors=True)


def _start(server: Postgres | Valkey) -> Postgres | Valkey:
    try:
        server.start()
    except MissingExtraError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the embedded servers: {error}")
        pytest.skip(str(error))
    return server


@pytest.fixture(scope="session")
def postgres_url(test_servers_directory: DataDirectory) -> Iterator[str]:
    """A PostgreSQL for this session, as a role that is no superuser and owns its database."""
    if url := os.environ.get("SENDER_TEST_DATABASE_URL"):
        yield url
        return
    server = _start(Postgres(test_servers_directory, durable=False))
    yield server.url
    server.stop(now=True)


@pytest.fixture(scope="session")
def valkey_url(test_servers_directory: DataDirectory) -> Iterator[str]:
    """A Valkey for this session, with a password."""
    if url := os.environ.get("SENDER_TEST_BROKER_URL"):
        yield url
        return
    server = _start(Valkey(test_servers_directory, durable=False))
    yield server.url
    server.stop(now=True)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    """A freshly migrated schema of its own, dropped afterwards."""
    schema = f"test_{uuid.uuid4().hex[:12]}"
    migrate(postgres_url, schema)
    database = Database(postgres_url, schema=schema)
    yield database
    database.close()
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))


@pytest.fixture
def settings(database: Database, valkey_url: str, tmp_path: Path) -> Settings:
    """Settings bound to both servers and the test's own schema and queues."""
    return Settings(
        database_url=database.url,
        database_schema=database.schema,
        broker_url=valkey_url,
        queue_prefix=f"q{uuid.uuid4().hex[:8]}",
        data_dir=tmp_path / "data",
    )


@pytest.fixture
def sender(settings: Settings) -> Iterator[Sender]:
    """A sender on those settings."""
    with Sender(settings=settings) as sender:
        yield sender
