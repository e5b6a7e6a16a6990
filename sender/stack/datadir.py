"""The data directory: state of the embedded servers, generated secrets, logs, and a lock for whoever runs on it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sender.errors import ConfigurationError, ConflictError
from sender.settings import LOCK_FILE

SECRETS_FILE = "secrets.json"
LOG_LIMIT = 20 * 1024 * 1024  # bytes; a longer log is put aside (one generation) when its process starts


class DataDirectory:
    """One data directory. What is secret in it is a file of mode 0600; nothing outside of it is ever chmodded."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self._writing = threading.Lock()

    def create(self) -> None:
        """Make the directory when there is none. Raises `ConfigurationError` when it cannot be ours."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.geteuid() == 0 and self.path.stat().st_uid == 0:
                # The servers run as another user then, and must pass through; everything secret is closed by itself.
                self.path.chmod((self.path.stat().st_mode & 0o7777) | 0o011)
            for folder in (self.logs, self.run):
                folder.mkdir(mode=0o700, exist_ok=True)
            ignored = self.path / ".gitignore"
            if not ignored.exists():
                ignored.write_text("*\n")  # passwords and databases are not for repositories
        except OSError as error:
            raise self._refusal(error) from None

    @property
    def logs(self) -> Path:
        """Where the logs of servers and processes go."""
        return self.path / "logs"

    @property
    def run(self) -> Path:
        """An empty directory that processes run in, so that no project's own packages are beside them."""
        return self.path / "run"

    def log(self, name: str) -> Path:
        """The log of a process; a long one is put aside first."""
        log = self.logs / f"{name}.log"
        try:
            if log.stat().st_size > LOG_LIMIT:
                log.replace(log.with_suffix(".log.1"))
        except FileNotFoundError:
            pass
        return log

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory, against a second stack on it. Raises `ConflictError` when somebody else does."""
        try:
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._refusal(error) from None
        try:
            try:
                _take(descriptor)
            except BlockingIOError:
                owner = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
                raise ConflictError(
                    f"{self.path} is in use by process {owner}: stop that `sender up`, or give this one another "
                    "directory with --data-dir or SENDER_DATA_DIR"
                ) from None
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def secret(self, name: str) -> str:
        """A password of this installation, generated at its first use."""
        known = self.read(SECRETS_FILE)
        if name not in known:
            known[name] = secrets.token_urlsafe(24)
            self.write(SECRETS_FILE, known)
        return str(known[name])

    def read(self, name: str) -> dict[str, Any]:
        """A JSON object of ours; empty when there is none. Raises `ConfigurationError` when it is not readable."""
        try:
            value = json.loads((self.path / name).read_text())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._refusal(error) from None
        except (ValueError, RecursionError):
            raise ConfigurationError(f"{self.path / name} is damaged (no JSON): restore it or remove it") from None
        return value if isinstance(value, dict) else {}

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Replace a JSON object, whole or not at all; readable by us alone."""
        target = self.path / name
        draft = target.with_name(f".{name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with self._writing:
                draft.unlink(missing_ok=True)
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "w") as file:
                    json.dump(value, file)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(target)
        except OSError as error:
            raise self._refusal(error) from None

    def remove(self, name: str) -> None:
        """Remove a file of ours, if there is one."""
        (self.path / name).unlink(missing_ok=True)

    def _refusal(self, error: OSError) -> ConfigurationError:
        return ConfigurationError(
            f"cannot use the data directory {self.path} ({error.strerror}: {error.filename}): it must be writable and "
            "its files must be yours; choose another one with --data-dir or SENDER_DATA_DIR"
        )


def _take(descriptor: int) -> None:
    """Lock a file for ourselves; not at the first try when somebody only looks whether it is locked. Raises
    `BlockingIOError`."""
    for pause in (0.01, 0.05, 0.1, 0.2, 0.2):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(pause)
    return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
