"""Workers, beat, the command line and the client on a schema that is older or newer than they are."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from sender.client import Sender
from sender.engine.runtime import Runtime
from sender.errors import SchemaVersionError
from sender.settings import Settings
from sender.stack.commands import settings_environment
from sender.store import migrate, schema
from sender.store.database import Database
from tests.integration.engine import ScriptedClients

SENDER = Path(sys.executable).with_name("sender")
OLDER = ("0001", "run `sender migrate`")
NEWER = ("9999", "upgrade apns-campaign-sender")


def set_version(database: Database, version: str) -> None:
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.alembic_version SET version_num = %s", (version,))


def run(settings: Settings, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **settings_environment(settings)}
    return subprocess.run([SENDER, *arguments], env=environment, capture_output=True, text=True, timeout=60)


def test_the_revisions_that_are_known_are_those_of_the_migrations() -> None:
    script = ScriptDirectory.from_config(migrate._config("any"))
    assert tuple(reversed([revision.revision for revision in script.walk_revisions()])) == schema.REVISIONS


@pytest.mark.parametrize(("version", "remedy"), [OLDER, NEWER])
@pytest.mark.parametrize("command", [["worker", "--role", "all"], ["beat"], ["apps", "list"]])
def test_a_schema_of_another_version_is_refused_in_one_line(
    settings: Settings, database: Database, command: list[str], version: str, remedy: str
) -> None:
    set_version(database, version)
    done = run(settings, command)
    assert done.returncode == 1
    assert version in done.stderr and remedy in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_worker_on_an_empty_schema_says_that_it_is_not_migrated(settings: Settings) -> None:
    empty = settings.model_copy(update={"database_schema": "nothing_here"})
    done = run(empty, ["worker", "--role", "all"])
    assert done.returncode == 1
    assert "run `sender migrate`" in done.stderr and "Traceback" not in done.stderr + done.stdout


@pytest.mark.parametrize(("version", "remedy"), [OLDER, NEWER])
def test_the_client_refuses_it_too(settings: Settings, database: Database, version: str, remedy: str) -> None:
    set_version(database, version)
    with Sender(settings=settings) as sender, pytest.raises(SchemaVersionError, match=remedy):
        sender.apps.list()


def test_the_client_refuses_it_in_a_transaction_of_the_applications_own(settings: Settings, database: Database) -> None:
    import psycopg

    from tests.integration.campaign_rows import APP, PAYLOAD

    set_version(database, "9999")
    with Sender(settings=settings) as sender, psycopg.connect(database.url) as connection:
        with pytest.raises(SchemaVersionError, match="9999"):
            sender.campaigns.enqueue(APP, key="k", payload=PAYLOAD, connection=connection)
        assert connection.execute("SELECT 1").fetchone() == (1,)  # the application's transaction is not broken


def test_a_runtime_that_is_overtaken_by_a_migration_stops_issuing_and_says_so_once(
    settings: Settings, database: Database
) -> None:
    told: list[int] = []
    runtime = Runtime(settings, role="campaign", clients=ScriptedClients(), outdated=lambda: told.append(1))  # type: ignore[arg-type]
    try:
        runtime._beat()
        set_version(database, "9999")
        for _ in range(2):
            with pytest.raises(SchemaVersionError) as refused:
                runtime._beat()
            runtime._give_way(refused.value)
        assert told == [1] and runtime.stopping.begun
    finally:
        runtime.close()


@pytest.fixture
def worker(settings: Settings, database: Database, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of all roles that has beaten."""
    with (tmp_path / "worker.log").open("wb") as log:
        process = subprocess.Popen(
            [SENDER, "worker", "--role", "all"],
            env={**os.environ, **settings_environment(settings)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        end = time.monotonic() + 60
        while not workers(database):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "worker.log").read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


def workers(database: Database) -> list[tuple[int]]:
    with database.transaction() as transaction:
        return transaction.execute("SELECT pid FROM {s}.workers").fetchall()


def test_a_worker_that_is_overtaken_by_a_migration_stops_in_order(
    worker: subprocess.Popen[bytes], database: Database, tmp_path: Path
) -> None:
    set_version(database, "9999")
    assert worker.wait(timeout=60) == 0
    log = (tmp_path / "worker.log").read_text()
    assert "schema_changed" in log and "9999" in log
    assert workers(database) == []
