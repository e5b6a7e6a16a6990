"""Directories of throw-away installations. Whoever makes one holds a lock in it for as long as he lives; what is left
of somebody who was killed is removed by the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from sender.errors import SenderError
from sender.settings import LOCK_FILE, is_locked
from sender.stack.account import LOCATIONS_FILE, forget_homes
from sender.stack.datadir import DataDirectory
from sender.stack.launch import end_stranger

PREFIX = "sender-demo-"

#: Locked by whoever made the directory; it comes into being locked.
ALIVE_FILE = "alive"

#: The stack's data directory in it.
DATA = "data"

_SERVERS = frozenset({"postgres", "valkey-server"})


@contextmanager
def throwaway() -> Iterator[Path]:
    """A directory for a throw-away installation, which is gone afterwards."""
    remove_abandoned()
    path = Path(tempfile.mkdtemp(prefix=PREFIX))
    held = _hold(path)
    try:
        yield path
    finally:
        _remove(path)
        os.close(held)


def remove_abandoned() -> None:
    """Remove directories of ours whose makers are gone, and the stacks in them as well; what they cannot be told from
    stays."""
    for path in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        with contextlib.suppress(OSError, SenderError):
            if _is_abandoned(path):
                _end_servers(path)
                _remove(path)


def _is_abandoned(path: Path) -> bool:
    found = path.lstat()
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid == os.geteuid()
        and (path / ALIVE_FILE).is_file()
        and not is_locked(path / ALIVE_FILE)
        and not is_locked(path / DATA / LOCK_FILE)  # its stack stops in order when its maker is gone
    )


def _hold(path: Path) -> int:
    """Lock a directory until the descriptor is closed. Nobody sees the file before it is locked."""
    draft = path / f".{ALIVE_FILE}"
    descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    draft.rename(path / ALIVE_FILE)
    return descriptor


def _end_servers(path: Path) -> None:
    """End servers whose stack was killed as well."""
    places = [path / DATA, *map(Path, DataDirectory(path / DATA).read(LOCATIONS_FILE).values())]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() in _SERVERS and any(Path(process.cwd()).is_relative_to(place) for place in places):
                end_stranger(process, (signal.SIGQUIT, 5.0))


def _remove(path: Path) -> None:
    with contextlib.suppress(SenderError):
        forget_homes(DataDirectory(path / DATA))  # as root, the servers' state is in another place
    shutil.rmtree(path, ignore_errors=True)
