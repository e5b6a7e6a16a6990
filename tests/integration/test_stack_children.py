"""The processes around the servers: restarted, recorded, found again after `sender up` was killed."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from sender.stack import children as children_module
from sender.stack.children import PROCESSES_FILE, Children, find_leftovers
from sender.stack.commands import PROGRAM, Command, Role
from sender.stack.datadir import DataDirectory

SLEEPER = "import time, sys; print('up', flush=True); time.sleep(600)"


def _command(name: str, script: str = SLEEPER) -> Command:
    return Command(
        name=name, role=Role.CAMPAIGN, argv=(sys.executable, "-c", script, PROGRAM), environment=dict(os.environ)
    )


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    data = DataDirectory(tmp_path / "data")
    data.create()
    return data


@pytest.fixture
def children(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Children]:
    monkeypatch.setattr(children_module, "FIRST_BACKOFF", 0.05)
    children = Children(data)
    yield children
    children.signal(signal.SIGKILL)
    for child in children.all:
        if child.process:
            child.process.wait()
    children.forget()


def _until(condition: Callable[[], object]) -> None:
    """Poll; the test's own timeout is the limit."""
    while not condition():
        time.sleep(0.01)


def test_a_process_that_dies_is_found_dead_once_and_comes_back_as_another(children: Children) -> None:
    child = children.start(_command("campaign-1"))
    other = children.start(_command("campaign-2"))
    first, untouched = child.pid, other.pid
    psutil.Process(first).kill()
    _until(lambda: not child.alive())
    assert children.tend() == [child]
    _until(lambda: children.tend() == [] and child.alive())
    assert child.pid != first
    assert other.pid == untouched


def test_a_process_that_dies_again_and_again_waits_longer_each_time(children: Children) -> None:
    child = children.start(_command("broken", "import sys; print('no key', flush=True); sys.exit(3)"))
    waits = []
    for _ in range(3):
        _until(lambda: child in children.tend())
        waits.append(child.due_at - time.monotonic())
    assert waits == sorted(waits)
    assert waits[2] > 2 * waits[0]
    assert child.last_words() == "no key"


def test_a_process_runs_in_a_session_of_its_own_in_a_neutral_directory_with_its_output_in_a_log(
    children: Children, data: DataDirectory
) -> None:
    child = children.start(_command("campaign-1"))
    assert child.pid is not None
    assert os.getsid(child.pid) == child.pid
    assert Path(psutil.Process(child.pid).cwd()) == data.run
    _until(lambda: child.log.read_text() == "up\n")
    assert child.log == data.logs / "campaign-1.log"


def test_processes_of_a_killed_stack_are_found_by_the_next_and_strangers_with_their_pid_are_not(
    children: Children, data: DataDirectory
) -> None:
    child = children.start(_command("campaign-1"))
    assert [process.pid for process in find_leftovers(data)] == [child.pid]
    record = data.read(PROCESSES_FILE)
    record["processes"] += [
        {"name": "older", "pid": child.pid, "created": record["processes"][0]["created"] - 60},
        {"name": "gone", "pid": 2**22 + 1, "created": 1.0},
        {"name": "stranger", "pid": os.getpid(), "created": psutil.Process().create_time()},
    ]
    data.write(PROCESSES_FILE, record)
    assert [process.pid for process in find_leftovers(data)] == [child.pid]


def test_new_command_lines_take_the_place_of_the_old_ones(children: Children) -> None:
    child = children.start(_command("campaign-1"))
    _until(lambda: child.log.read_text() == "up\n")
    children.replace([_command("campaign-1", SLEEPER.replace("up", "moved"))])
    _until(lambda: children.tend() == [] and child.log.read_text() == "up\nmoved\n")


def test_a_program_that_is_gone_counts_as_a_death(children: Children) -> None:
    child = children.start(_command("campaign-1"))
    child.command = Command(name="campaign-1", role=Role.CAMPAIGN, argv=("/nonexistent/python",), environment={})
    psutil.Process(child.pid).kill()
    _until(lambda: child in children.tend())
    _until(lambda: children.tend() == [] and child.deaths == 2)
    assert not child.alive()
