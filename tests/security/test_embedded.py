"""The embedded servers are their own user's alone."""

from __future__ import annotations

import stat
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from sender.stack.account import forget_homes
from sender.stack.datadir import DataDirectory
from sender.stack.postgres import Postgres
from sender.stack.valkey import Valkey


def listening(pid: int | None) -> set[str]:
    """The addresses on which a process and its children accept TCP."""
    assert pid is not None
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # a child of a moment
            found |= {each.laddr.ip for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    return found


def open_to_others(path: Path) -> bool:
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


@pytest.fixture(scope="module")
def data(test_servers_directory: DataDirectory, tmp_path_factory: pytest.TempPathFactory) -> DataDirectory:
    data = DataDirectory(tmp_path_factory.mktemp("data"))
    data.create()
    return data


def test_postgresql_listens_on_a_socket_of_its_user_and_asks_for_a_password(data: DataDirectory) -> None:
    server = Postgres(data, durable=False)
    server.start()
    try:
        parts = conninfo_to_dict(server.url)
        folder = Path(str(parts["host"]))
        assert not open_to_others(folder)
        assert all(not stat.S_IMODE(each.stat().st_mode) & 0o077 for each in folder.iterdir() if each.is_socket())
        assert listening(server.pid) == set()
        assert not open_to_others(server.state / "data")
        rules = (server.state / "data" / "pg_hba.conf").read_text().splitlines()
        methods = {rule.split()[-1] for rule in rules if rule.strip() and not rule.startswith("#")}
        assert methods == {"scram-sha-256"}
        for user in ("sender", "postgres"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(make_conninfo(server.url, user=user, password="guess"))
        with psycopg.connect(server.url) as connection:
            row = connection.execute(
                "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = user"
            ).fetchone()
            assert row == (False, False, False)
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("COPY (SELECT 1) TO PROGRAM 'id'")
        assert not (server.state / "password").exists()
    finally:
        server.stop(now=True)
        forget_homes(data)


def test_valkey_listens_on_loopback_and_asks_for_a_password(data: DataDirectory) -> None:
    server = Valkey(data, durable=False)
    server.start()
    try:
        assert listening(server.pid) == {"127.0.0.1"}
        parts = urlsplit(server.url)
        for password in (None, "guess"):
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(host="127.0.0.1", port=parts.port or 0, password=password).ping()
        assert len(parts.password or "") >= 32
        assert parts.password not in " ".join(psutil.Process(server.pid).cmdline())
        assert not open_to_others(server.state)
        assert not open_to_others(data.path / "secrets.json")
    finally:
        server.stop(now=True)
        forget_homes(data)
