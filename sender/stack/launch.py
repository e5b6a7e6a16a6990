"""Start a process in a session of its own, look at it, and end it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from sender.stack.account import Account


def launch(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str],
    account: Account | None = None,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process that Ctrl-C in our terminal does not reach, with its output appended to a log (mode 0600)."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment),
            start_new_session=True,
            umask=0o077,
            pass_fds=pass_fds,
            **(account.options() if account else {}),
        )
    finally:
        os.close(descriptor)


def server_environment() -> dict[str, str]:
    """What a server needs to know of our environment: next to nothing."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C", "LC_ALL": "C", "TZ": "UTC"}


def size(log: Path) -> int:
    """The length of a log in bytes, to know later what was added."""
    try:
        return log.stat().st_size
    except FileNotFoundError:
        return 0


def tail(log: Path, since: int = 0, lines: int = 15) -> str:
    """The last lines of a log that were written after a length."""
    try:
        with log.open("rb") as file:
            file.seek(since if since <= size(log) else 0)  # it was put aside and begun anew
            text = file.read()[-64_000:].decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


def end(process: subprocess.Popen[bytes], *steps: tuple[signal.Signals, float]) -> None:
    """Signal a child and wait, step by step with more force; SIGKILL at last. Steps are (signal, seconds)."""
    for signum, seconds in steps:
        if process.poll() is not None:
            return
        process.send_signal(signum)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    if process.poll() is None:
        process.kill()
        process.wait()


def end_stranger(process: psutil.Process, *steps: tuple[signal.Signals, float]) -> None:
    """The same for a process that is not our child: what an earlier, killed stack has left behind."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for signum, seconds in steps:
            process.send_signal(signum)
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(seconds)
                return
        process.kill()
        with contextlib.suppress(psutil.TimeoutExpired):
            process.wait(10)


def running_in(folder: Path, program: str) -> list[psutil.Process]:
    """Processes of a program whose working directory is this folder: a server's, whatever its pid file says."""
    found = []
    wanted = folder.resolve()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.name() == program and Path(process.cwd()) == wanted:
                found.append(process)
    return found
