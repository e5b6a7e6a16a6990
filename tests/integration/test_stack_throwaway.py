"""Directories of rehearsals: gone with whoever made them, or removed by the next one, and by nobody who is not sure."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sender.settings import LOCK_FILE
from sender.stack.throwaway import ALIVE_FILE, DATA, PREFIX, remove_abandoned, throwaway

#: Makes one, and lives until it is told otherwise.
MAKER = """
import time
from sender.stack.signals import ended_in_order
from sender.stack.throwaway import throwaway
with ended_in_order(), throwaway() as path:
    (path / "data").mkdir()
    (path / "data" / "locations.json").write_text("{}")
    print(path, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the directories are made: nobody else's are there."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def maker() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", MAKER], stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def made_by(maker: subprocess.Popen[str]) -> Path:
    assert maker.stdout is not None
    path = Path(maker.stdout.readline().strip())
    assert path.is_dir()
    return path


def abandoned(place: Path, name: str = "left") -> Path:
    path = place / f"{PREFIX}{name}"
    (path / DATA).mkdir(parents=True)
    (path / ALIVE_FILE).touch()
    return path


def test_a_directory_is_gone_afterwards(place: Path) -> None:
    with throwaway() as path:
        (path / "file").touch()
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_its_maker_in_order(maker: subprocess.Popen[str], signum: signal.Signals) -> None:
    path = made_by(maker)
    maker.send_signal(signum)
    maker.wait(60)
    assert not path.exists()


def test_what_a_killed_maker_left_is_removed_by_the_next_and_a_living_ones_is_not(
    maker: subprocess.Popen[str],
) -> None:
    path = made_by(maker)
    with throwaway():
        assert path.is_dir()
    maker.kill()
    maker.wait(60)
    assert path.is_dir()
    with throwaway() as mine:
        assert not path.exists()
        assert mine.is_dir()


def test_a_directory_whose_stack_is_still_stopping_is_left(place: Path) -> None:
    path = abandoned(place)
    with (path / DATA / LOCK_FILE).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        remove_abandoned()
        assert path.is_dir()
    remove_abandoned()
    assert not path.exists()


def test_what_is_no_directory_of_a_rehearsal_is_left(place: Path) -> None:
    (place / f"{PREFIX}empty").mkdir()  # of somebody who has not locked it yet, or of an older version
    (place / f"{PREFIX}file").touch()
    real = abandoned(place / "elsewhere")
    (place / f"{PREFIX}link").symlink_to(real)
    remove_abandoned()
    assert sorted(path.name for path in place.iterdir()) == [
        "elsewhere",
        f"{PREFIX}empty",
        f"{PREFIX}file",
        f"{PREFIX}link",
    ]
    assert real.is_dir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's directory")
def test_another_users_directory_is_left(place: Path) -> None:
    path = abandoned(place)
    os.chown(path, 65534, 65534)
    remove_abandoned()
    assert path.is_dir()
