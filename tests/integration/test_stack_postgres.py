"""The embedded PostgreSQL through what happens to a server on somebody's machine."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from sender.errors import ConfigurationError, StackError
from sender.stack import account
from sender.stack import postgres as postgres_module
from sender.stack.account import Programs, forget_homes
from sender.stack.datadir import DataDirectory
from sender.stack.launch import running_in
from sender.stack.postgres import Postgres, find_programs
from sender.stack.valkey import Valkey

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about running as root")


@pytest.fixture(scope="module")
def made_once() -> Iterator[DataDirectory]:
    """A data directory that the tests of this module go on with, one after the other."""
    yield from _data(Path(tempfile.mkdtemp(prefix="sender-test-", dir="/tmp")))


@pytest.fixture
def server(made_once: DataDirectory) -> Iterator[Postgres]:
    server = Postgres(made_once, durable=False)
    server.start()
    yield server
    server.stop(now=True)


def _data(path: Path) -> Iterator[DataDirectory]:
    data = DataDirectory(path)
    data.create()
    yield data
    forget_homes(data)
    shutil.rmtree(path)


def _write(server: Postgres, word: str) -> None:
    with psycopg.connect(server.url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS words (word text)")
        connection.execute("INSERT INTO words VALUES (%s)", [word])


def _words(server: Postgres) -> set[str]:
    with psycopg.connect(server.url) as connection:
        return {word for (word,) in connection.execute("SELECT word FROM words")}


def test_what_was_written_is_there_after_a_restart_and_under_the_same_url(
    made_once: DataDirectory, server: Postgres
) -> None:
    _write(server, "restarted")
    server.stop()
    assert not server.alive()
    assert server._sockets is not None and not server._sockets.exists()
    again = Postgres(made_once, durable=False, connections=317)
    again.start()
    try:
        assert again.url == server.url
        assert "restarted" in _words(again)
        with psycopg.connect(again.url) as connection:
            assert connection.execute("SHOW max_connections").fetchone() == ("317",)
    finally:
        again.stop(now=True)


def test_what_was_committed_is_there_after_kill_9_and_under_the_same_url(server: Postgres) -> None:
    _write(server, "killed")
    url = server.url
    psutil.Process(server.pid).kill()
    assert server._process is not None and server._process.wait() == -signal.SIGKILL
    server.start()
    assert "killed" in _words(server)
    assert server.url == url


def test_a_stale_pid_file_that_names_a_strangers_process_is_removed_and_the_stranger_left_alone(
    made_once: DataDirectory, server: Postgres
) -> None:
    psutil.Process(server.pid).kill()
    assert server._process is not None
    server._process.wait()
    assert server._home is not None
    pid_file = server._home.state / "data" / "postmaster.pid"
    with subprocess.Popen(["sleep", "600"]) as stranger:
        lines = pid_file.read_text().splitlines()
        pid_file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        server.start()
        assert stranger.poll() is None
        assert server.alive()
        stranger.kill()


def test_a_server_that_outlived_its_stack_is_ended_and_replaced(made_once: DataDirectory, server: Postgres) -> None:
    _write(server, "left behind")
    successor = Postgres(made_once, durable=False)
    successor.start()
    try:
        assert server._process is not None
        assert server._process.wait(10) == 0
        assert "left behind" in _words(successor)
        assert server._home is not None
        parents = set()
        for process in running_in(server._home.state / "data", "postgres"):
            with suppress(psutil.NoSuchProcess):  # one that was for a moment only
                parents.add(process.ppid())
        assert successor.pid in parents
    finally:
        successor.stop(now=True)


def test_its_sockets_and_state_are_closed_to_others_and_it_listens_on_no_port(server: Postgres) -> None:
    assert server._sockets is not None and server._home is not None
    assert stat.S_IMODE(server._sockets.stat().st_mode) == 0o700
    assert stat.S_IMODE((server._home.state / "data").stat().st_mode) == 0o700
    assert not [c for c in psutil.Process(server.pid).net_connections() if c.family.name.startswith("AF_INET")]


def test_it_does_not_stop_with_the_terminal_of_whoever_started_it(server: Postgres) -> None:
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_no_password_is_among_its_arguments(made_once: DataDirectory, server: Postgres) -> None:
    arguments = " ".join(psutil.Process(server.pid).cmdline())
    for secret in made_once.read("secrets.json").values():
        assert secret not in arguments


def test_a_server_that_dies_at_its_start_shows_the_end_of_its_log(made_once: DataDirectory, server: Postgres) -> None:
    server.stop()
    assert server._home is not None
    configuration = server._home.state / "data" / "postgresql.conf"
    before = configuration.read_text()
    configuration.write_text("port = nonsense\n")
    try:
        with pytest.raises(StackError, match='"port": "nonsense"'):
            server.start()
    finally:
        configuration.write_text(before)


def test_a_lost_secret_is_said_and_not_waited_for(made_once: DataDirectory, server: Postgres) -> None:
    server.stop()
    known = made_once.read("secrets.json")
    made_once.write("secrets.json", known | {"postgres-superuser": "another"})
    try:
        with pytest.raises(StackError, match=r"secrets\.json"):
            server.start()
        assert not server.alive()
    finally:
        made_once.write("secrets.json", known)


def test_a_database_of_another_major_version_is_refused_by_name(made_once: DataDirectory, server: Postgres) -> None:
    server.stop()
    assert server._home is not None
    version = server._home.state / "data" / "PG_VERSION"
    before = version.read_text()
    version.write_text("13\n")
    try:
        with pytest.raises(StackError, match="made by PostgreSQL 13"):
            server.start()
    finally:
        version.write_text(before)


def test_giving_up_while_it_starts_leaves_no_server_behind(made_once: DataDirectory, server: Postgres) -> None:
    server.stop()

    def give_up(_: float) -> None:
        raise InterruptedError

    impatient = Postgres(made_once, durable=False, pause=give_up)
    with pytest.raises(InterruptedError):
        impatient.start()
    impatient.stop(now=True)
    assert impatient._home is not None
    assert not running_in(impatient._home.state / "data", "postgres")


def test_a_killed_initdb_is_begun_anew_and_a_path_far_beyond_a_sockets_limit_works(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 30) / ("path" * 30)
    for data in _data(path):
        server = Postgres(data, durable=False)
        home = account.find_home(data, "postgres", find_programs())
        (home.state / "new").mkdir()
        (home.state / "new" / "PG_VERSION").write_text("18")
        server.start()
        try:
            _write(server, "far away")
            assert _words(server) == {"far away"}
        finally:
            server.stop(now=True)


@as_root
def test_root_under_a_closed_directory_gets_servers_that_are_not_root_and_nothing_is_opened_up(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for data in _data(closed / "project" / ".sender"):
        before = _modes(closed.parent)
        for server in (Postgres(data, durable=False), Valkey(data, durable=False)):
            server.start()
            try:
                assert psutil.Process(server.pid).uids().real != 0
            finally:
                server.stop(now=True)
        assert _modes(closed.parent) == before
        place = Path(data.read("locations.json")["postgres"])
        forget_homes(data)
        assert not place.exists()


def _modes(path: Path) -> list[int]:
    return [folder.stat().st_mode for folder in (path, *path.parents, path / "closed", path / "closed" / "project")]


@as_root
def test_root_with_programs_that_others_cannot_read_runs_a_copy(
    tmp_path: Path, made_once: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = find_programs()
    closed = tmp_path / "venv"
    closed.mkdir(mode=0o700)
    for part in original.parts:
        if (original / part).exists():
            account._copy(original / part, closed / part)
    programs = Programs(root=closed, parts=original.parts, version=original.version)
    monkeypatch.setattr(postgres_module, "find_programs", lambda: programs)
    server = Postgres(made_once, durable=False)
    server.start()
    try:
        _write(server, "copied")
        assert not psutil.Process(server.pid).exe().startswith(str(closed))
    finally:
        server.stop(now=True)


@as_root
def test_a_copy_of_a_data_directory_does_not_share_the_database_that_is_elsewhere(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    for data in _data(closed / "one"):
        account.find_home(data, "postgres", find_programs())
        shutil.copytree(data.path, closed / "two")
        with pytest.raises(ConfigurationError, match="is a copy of"):
            account.find_home(DataDirectory(closed / "two"), "postgres", find_programs())
        (closed / "one").rename(closed / "moved")
        moved = DataDirectory(closed / "moved")
        assert (
            str(account.find_home(moved, "postgres", find_programs()).state) == moved.read("locations.json")["postgres"]
        )
        (closed / "moved").rename(closed / "one")


@as_root
def test_an_ordinary_user_runs_both_servers_too() -> None:
    nobody = pwd.getpwnam("nobody")
    path = Path(tempfile.mkdtemp(prefix="sender-test-", dir="/tmp"))
    os.chown(path, nobody.pw_uid, nobody.pw_gid)
    programs = find_programs()
    if not account._reaches(account.Account(name="nobody", uid=nobody.pw_uid, gid=nobody.pw_gid), [programs.root]):
        shutil.rmtree(path)
        pytest.skip("this virtual environment is closed to ordinary users")
    "".encode("idna")  # loads what the child could not
    reader, writer = os.pipe()
    child = os.fork()  # not a new interpreter: it may be installed where only root reads
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(nobody.pw_gid)
            os.setuid(nobody.pw_uid)
            os.write(writer, _run_both(path / "data").encode())
        except BaseException as error:
            os.write(writer, "".join(traceback.format_exception(error)).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    try:
        assert said == "sender True"
        assert (path / "data" / "postgres" / "data").stat().st_uid == nobody.pw_uid
    finally:
        shutil.rmtree(path)


def _run_both(path: Path) -> str:
    data = DataDirectory(path)
    data.create()
    postgres, valkey = Postgres(data, durable=False), Valkey(data, durable=False)
    try:
        postgres.start()
        valkey.start()
        with psycopg.connect(postgres.url) as connection:
            row = connection.execute("SELECT current_user").fetchone()
        return f"{row[0] if row else None} {redis.Redis.from_url(valkey.url).ping()}"
    finally:
        postgres.stop(now=True)
        valkey.stop(now=True)


def test_a_socket_directory_that_somebody_else_has_taken_is_left_to_them(
    made_once: DataDirectory, server: Postgres
) -> None:
    taken = server._sockets
    assert taken is not None
    server.stop()
    taken.mkdir(mode=0o777)
    taken.chmod(0o777)
    (taken / "theirs").touch()
    again = Postgres(made_once, durable=False)
    again.start()
    try:
        assert again.url != server.url
        assert (taken / "theirs").exists()
    finally:
        again.stop(now=True)
        shutil.rmtree(taken)


def test_a_copy_of_a_data_directory_has_sockets_of_its_own(made_once: DataDirectory, server: Postgres) -> None:
    server.stop()
    for copy in _data(Path(tempfile.mkdtemp(prefix="sender-test-", dir="/tmp"))):
        for name in ("sockets.json", "secrets.json"):
            shutil.copy(made_once.path / name, copy.path / name)
        other = Postgres(copy, durable=False)
        other.start()
        try:
            assert other._sockets != server._sockets
        finally:
            other.stop(now=True)
