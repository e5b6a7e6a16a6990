"""`sender up` as a user runs it, inside a project that has `tasks` and `config` packages of its own."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from sender.settings import load_settings
from sender.stack.account import forget_homes
from sender.stack.datadir import DataDirectory

SENDER = str(Path(sys.executable).with_name("sender"))
pytestmark = pytest.mark.slow


class Up:
    """A running `sender up` and what it has printed."""

    def __init__(self, project: Path, *arguments: str, **environment: str) -> None:
        self.project = project
        self.data = project / ".sender"
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            [SENDER, "up", *arguments],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(project), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait_for(self, pattern: str, *, since: int = 0) -> re.Match[str]:
        """The first line that matches. The test's own timeout is the limit."""
        with self._news:
            while True:
                for line in self.lines[since:]:
                    if found := re.fullmatch(pattern, line):
                        return found
                if self._ended:
                    logs = {log.name: log.read_text()[-1500:] for log in (self.data / "logs").glob("*.log")}
                    raise AssertionError("\n".join([*self.lines, *(f"== {k}\n{v}" for k, v in logs.items())]))
                self._news.wait()

    def processes(self) -> dict[int, psutil.Process]:
        """Everything that runs in its data directory, servers too."""
        found = {}
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.data) or self.process.pid == process.ppid():
                    found[process.pid] = process
            except (psutil.Error, OSError):
                continue
        return found

    def child(self, name: str) -> psutil.Process:
        record = json.loads((self.data / "processes.json").read_text())["processes"]
        return psutil.Process(next(entry["pid"] for entry in record if entry["name"] == name))

    def server(self, name: str) -> psutil.Process:
        return next(p for p in self.processes().values() if p.name() == name and p.ppid() == self.process.pid)

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait()


@pytest.fixture(scope="module")
def project() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="sender-up-", dir="/tmp"))
    for name in ("config", "tasks"):
        (path / name).mkdir()
        (path / name / "__init__.py").write_text(f"raise SystemExit('the {name} package of the project')\n")
    yield path
    forget_homes(DataDirectory(path / ".sender"))
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        yield stranger.getsockname()[1]


@pytest.fixture(scope="module")
def up(project: Path, taken_port: int) -> Iterator[Up]:
    up = Up(project, "--workers", "1", SENDER_FLOWER_PORT=str(taken_port))
    yield up
    up.stop()
    for process in up.processes().values():
        process.kill()


def test_it_says_ready_when_every_process_is_there_and_tells_others_where_its_servers_are(up: Up) -> None:
    up.wait_for("ready")
    servers = up.data / "servers.json"
    assert stat.S_IMODE(servers.stat().st_mode) == 0o600
    settings = load_settings(data_dir=up.data)
    with psycopg.connect(settings.require_database_url()) as connection:
        roles = connection.execute("SELECT role, count(*) FROM sender.workers GROUP BY role").fetchall()
    assert dict(roles) == {"campaign": 1, "control": 1, "priority": 1}
    done = subprocess.run([SENDER, "migrate", "--check"], cwd=up.project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_second_one_on_the_same_directory_is_refused_by_the_first_ones_process_number(up: Up) -> None:
    up.wait_for("ready")
    second = subprocess.run([SENDER, "up"], cwd=up.project, capture_output=True, text=True)
    assert second.returncode == 1
    assert f"in use by process {up.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert up.process.poll() is None


def test_flower_is_on_the_next_free_port_and_asks_for_the_printed_password(up: Up, taken_port: int) -> None:
    address, user, password = up.wait_for(r"flower +(\S+) +user (\S+) +password (\S+)").groups()
    assert address != f"http://127.0.0.1:{taken_port}"
    assert json.loads((up.data / "servers.json").read_text())["flower_url"] == address
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}/api/workers")
    request = urllib.request.Request(f"{address}/api/workers")
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200
    assert password not in " ".join(up.child("flower").cmdline())


@pytest.mark.parametrize("name", ["campaign-1", "beat"])
def test_a_process_that_is_killed_comes_back(up: Up, name: str) -> None:
    up.wait_for("ready")
    since = len(up.lines)
    killed = up.child(name)
    killed.kill()
    up.wait_for(f"{name} ended with status -9, restarting.*", since=since)
    while not (found := [p for p in _record(up) if p["name"] == name]) or found[0]["pid"] == killed.pid:
        time.sleep(0.05)


@pytest.mark.parametrize(("program", "name"), [("postgres", "postgres"), ("valkey-server", "valkey")])
def test_a_server_that_is_killed_comes_back_with_its_state_under_the_same_url(up: Up, program: str, name: str) -> None:
    up.wait_for("ready")
    settings = load_settings(data_dir=up.data)
    since = len(up.lines)
    up.server(program).kill()
    up.wait_for(f"{name} is back", since=since)
    assert load_settings(data_dir=up.data) == settings
    assert redis.Redis.from_url(settings.require_broker_url()).ping()
    with psycopg.connect(settings.require_database_url()) as connection:
        moment = connection.execute("SELECT clock_timestamp()").fetchone()
        while not connection.execute("SELECT 1 FROM sender.pulses WHERE name = 'tick' AND at > %s", moment).fetchone():
            connection.commit()
            time.sleep(0.1)


def test_killed_itself_it_leaves_servers_that_the_next_one_ends_and_replaces(up: Up) -> None:
    up.wait_for("ready")
    left = up.processes()
    up.process.kill()
    up.process.wait()
    again = Up(up.project, "--workers", "1", "--no-flower")
    try:
        again.wait_for("ready")
        assert not psutil.wait_procs(list(left.values()), timeout=30)[1]
        done = subprocess.run([SENDER, "migrate", "--check"], cwd=up.project, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        running = again.processes()
        assert len(running) >= 6
        assert again.stop() == 0
        assert again.lines[-1] == "stopped"
        assert not psutil.wait_procs(list(running.values()), timeout=0)[1]
        assert not again.processes()
        assert not (again.data / "servers.json").exists()
        assert not (again.data / "processes.json").exists()
    finally:
        again.stop()


def test_given_servers_are_used_and_left_alone_and_a_second_signal_ends_at_once(
    project: Path, postgres_url: str, valkey_url: str
) -> None:
    schema = "test_up_given"
    up = Up(
        project,
        "--workers",
        "1",
        "--no-flower",
        SENDER_DATABASE_URL=postgres_url,
        SENDER_BROKER_URL=valkey_url,
        SENDER_DATABASE_SCHEMA=schema,
        SENDER_QUEUE_PREFIX=schema,
    )
    try:
        up.wait_for("ready")
        assert {process.name() for process in up.processes().values()}.isdisjoint({"postgres", "valkey-server"})
        campaign = up.child("campaign-1")
        campaign.suspend()  # does not drain
        up.process.send_signal(signal.SIGTERM)
        up.wait_for("stopping.*")
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait() == 0
        assert not campaign.is_running()
        assert redis.Redis.from_url(valkey_url).ping()
    finally:
        up.stop()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


_REHEARSE = """
import os, sys, time
from pathlib import Path
from sender.rehearsal import start_up
start_up("--workers", "1", "--no-flower", log=Path(sys.argv[1]), environment=os.environ)
print("ready", flush=True)
time.sleep(600)
"""


def test_a_rehearsals_stack_stops_in_order_when_whoever_started_it_is_killed(
    tmp_path: Path, postgres_url: str, valkey_url: str
) -> None:
    schema, log = "test_up_rehearsal", tmp_path / "up.log"
    given = {
        "SENDER_DATABASE_URL": postgres_url,
        "SENDER_BROKER_URL": valkey_url,
        "SENDER_DATABASE_SCHEMA": schema,
        "SENDER_QUEUE_PREFIX": schema,
        "SENDER_DATA_DIR": str(tmp_path / "data"),
    }
    starter = subprocess.Popen(
        [sys.executable, "-c", _REHEARSE, str(log)], env={**os.environ, **given}, stdout=subprocess.PIPE, text=True
    )
    try:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "ready\n", log.read_text()
        running = psutil.Process(starter.pid).children(recursive=True)
        assert len(running) >= 5
        starter.kill()
        assert not psutil.wait_procs(running, timeout=60)[1]
        assert log.read_text().splitlines()[-1] == "stopped"
    finally:
        starter.kill()
        starter.communicate()
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def test_a_process_that_cannot_start_ends_the_attempt_with_its_own_words_and_stops_the_rest(project: Path) -> None:
    somewhere = project / "elsewhere"
    (somewhere / "tasks").mkdir(parents=True)
    (somewhere / "tasks" / "__init__.py").write_text("")
    (somewhere / "sitecustomize.py").write_text("import tasks\n")  # whoever does this gets the wrong tasks
    up = Up(somewhere, "--no-flower", "--workers", "1")
    assert up.process.wait() == 1
    with pytest.raises(AssertionError):
        up.wait_for("ready")
    assert any("does not start" in line for line in up.lines)
    assert any("not the one of apns-campaign-sender" in line for line in up.lines)
    assert not up.processes()
    forget_homes(DataDirectory(up.data))


@pytest.mark.parametrize(
    ("variable", "url", "words"),
    [
        ("SENDER_BROKER_URL", "redis://:hidden@127.0.0.1:1/0", "Redis does not answer"),
        ("SENDER_BROKER_URL", "nonsense://:hidden@h/0", "SENDER_BROKER_URL"),
        ("SENDER_DATABASE_URL", "postgresql://u:hidden@127.0.0.1:1/d", "PostgreSQL does not answer"),
    ],
)
def test_given_servers_that_do_not_answer_are_one_clear_line(
    project: Path, postgres_url: str, valkey_url: str, variable: str, url: str, words: str
) -> None:
    given = {"SENDER_DATABASE_URL": postgres_url, "SENDER_BROKER_URL": valkey_url, variable: url}
    up = Up(project, "--no-flower", **given)
    assert up.process.wait() == 1
    while not up._ended:
        time.sleep(0.01)
    assert any(words in line for line in up.lines), up.lines
    assert not any("hidden" in line or "Traceback" in line for line in up.lines)


def _record(up: Up) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((up.data / "processes.json").read_text())["processes"]
    return found
