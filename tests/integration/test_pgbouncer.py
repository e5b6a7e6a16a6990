"""PgBouncer in transaction mode between us and PostgreSQL: each transaction may run on another server connection, so
nothing may be kept in a session."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from sender import Sender
from sender.engine.delivery import send_batch
from sender.settings import Settings
from sender.store.database import Database
from sender.store.migrate import migrate, status
from tests.integration.engine import engine_on, token_of

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed: apt-get install pgbouncer")

#: Connections that PgBouncer holds to PostgreSQL: fewer than we hold to it, so that they are passed around.
SERVER_CONNECTIONS = 3
SCHEMA = "through_pgbouncer"

_CONFIGURATION = """
[databases]
{dbname} = host={host} port={port} dbname={dbname}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = users.txt
pool_mode = transaction
default_pool_size = {pool}
max_client_conn = 200
"""


@pytest.fixture(scope="module")
def bouncer_url(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PgBouncer before the session's PostgreSQL."""
    assert PGBOUNCER is not None
    server = {name: str(value) for name, value in conninfo_to_dict(postgres_url).items()}
    host, folder = server["host"], tmp_path_factory.mktemp("pgbouncer")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        listen = free.getsockname()[1]
    (folder / "pgbouncer.ini").write_text(
        _CONFIGURATION.format(
            host=host, port=server.get("port", "5432"), dbname=server["dbname"],
            listen=listen, pool=SERVER_CONNECTIONS,
        )
    )  # fmt: skip
    (folder / "users.txt").write_text(f'"{server["user"]}" "{server["password"]}"\n')
    log = folder / "log"
    process = _start(folder, log, Path(host).stat().st_uid if host.startswith("/") else None)
    user, password = quote(server["user"], safe=""), quote(server["password"], safe="")
    try:
        url = f"postgresql://{user}:{password}@127.0.0.1:{listen}/{server['dbname']}"
        _wait_for(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait()


def _start(folder: Path, log: Path, owner: int | None) -> subprocess.Popen[bytes]:
    """As the owner of PostgreSQL's socket, who alone may use it: PgBouncer refuses to run as root. All paths are
    relative to its folder, whose parents may be closed to that user."""
    command = [str(PGBOUNCER), "pgbouncer.ini"]
    with log.open("wb") as output:
        if os.geteuid() != 0:
            return subprocess.Popen(command, cwd=folder, stderr=output)
        uid = owner or pwd.getpwnam("nobody").pw_uid
        group = pwd.getpwuid(uid).pw_gid
        for path in (folder, *folder.iterdir()):
            os.chown(path, uid, group)
        return subprocess.Popen(command, cwd=folder, stderr=output, user=uid, group=group, extra_groups=[])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        try:
            psycopg.connect(url, connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
    raise AssertionError(f"PgBouncer does not answer: {log.read_text()}")


@pytest.fixture
def bounced(bouncer_url: str, postgres_url: str, valkey_url: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings with a schema that was migrated through PgBouncer."""
    assert migrate(bouncer_url, SCHEMA).current is None
    yield Settings(database_url=bouncer_url, database_schema=SCHEMA, broker_url=valkey_url, data_dir=tmp_path / "data")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(SCHEMA)))


def test_many_migrations_at_once_do_it_once(bouncer_url: str, bounced: Settings) -> None:
    found: list[bool] = []
    threads = [threading.Thread(target=lambda: found.append(migrate(bouncer_url, SCHEMA).up_to_date)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 6
    assert status(bouncer_url, SCHEMA).up_to_date


@pytest.mark.parametrize("delivery", ["at_least_once", "at_most_once"])
def test_more_threads_than_connections_send_a_campaign_once_to_every_device(bounced: Settings, delivery: str) -> None:
    devices = 400
    database = Database(bounced.require_database_url(), schema=SCHEMA)
    with Sender(settings=bounced) as sender, closing(database), engine_on(bounced, database, sender) as engine:
        engine.add_devices(devices)
        engine.enqueue(delivery=delivery, batch_size=10)
        engine.start()
        with database.transaction() as transaction:
            assert not getattr(transaction.connection, "direct")
        batches, engine.queue = engine.queue, []
        with ThreadPoolExecutor(2 * SERVER_CONNECTIONS) as threads:
            assert len(list(threads.map(partial(send_batch, engine.runtime), batches))) == len(batches) > 1
        engine.run()
        report = engine.report()
        assert (report.state, report.sent) == ("completed", devices)
        assert engine.received == Counter(token_of(number) for number in range(1, devices + 1))
