"""The processes around the servers: started in sessions of their own, restarted with a back-off, recorded on disk.

The record is for the case that `sender up` itself is killed: the next one ends what it finds in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil

from sender.stack.commands import PROGRAM, Command
from sender.stack.datadir import DataDirectory
from sender.stack.launch import launch, size, tail
from sender.stack.run_celery import PARENT_PIPE

PROCESSES_FILE = "processes.json"
FIRST_BACKOFF, LONGEST_BACKOFF = 0.5, 30.0  # seconds
STABLE = 60.0  # seconds that a process must live for its next death to count as the first
SAME_START = 2.0  # seconds within which two start times are the same process's: clocks are adjusted


class Child:
    """One supervised process, over all its restarts."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0
        self.started_at = 0.0
        self.due_at = 0.0
        self.log = Path(os.devnull)
        self.log_start = 0

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def put_off(self, now: float) -> None:
        """Count a death and set when to start again: later each time, unless it had lived for long."""
        self.deaths = 1 if now - self.started_at > STABLE else self.deaths + 1
        self.due_at = now + min(FIRST_BACKOFF * 2 ** (self.deaths - 1), LONGEST_BACKOFF)
        self.started_at = now

    def last_words(self) -> str:
        """The end of its log since its last start."""
        return tail(self.log, self.log_start)


class Children:
    """All supervised processes of one `sender up`."""

    def __init__(self, data: DataDirectory) -> None:
        self._data = data
        self.all: list[Child] = []
        self._pipe: tuple[int, int] | None = None

    def start(self, command: Command) -> Child:
        """Start one more process and supervise it from now on."""
        child = Child(command)
        self.all.append(child)
        self._launch(child)
        return child

    def tend(self) -> list[Child]:
        """Restart what died and has waited long enough. Returns those that were found dead since the last call."""
        now = time.monotonic()
        died = []
        for child in self.all:
            if child.alive():
                continue
            if child.due_at == 0.0:
                child.put_off(now)
                died.append(child)
            elif child.due_at <= now:
                try:
                    self._launch(child)
                except OSError:  # the program is being replaced, or the system is out of processes
                    child.put_off(now)
        return died

    def replace(self, commands: list[Command]) -> None:
        """Give the children new command lines by name, and signal those that run: `tend` starts them anew."""
        by_name = {command.name: command for command in commands}
        for child in self.all:
            child.command = by_name.get(child.command.name, child.command)
        self.signal(signal.SIGTERM)

    def signal(self, signum: signal.Signals) -> None:
        """Signal those that live."""
        for child in self.all:
            if child.process is not None and child.alive():
                child.process.send_signal(signum)

    def living(self) -> list[Child]:
        return [child for child in self.all if child.alive()]

    def forget(self) -> None:
        """Remove the record: nothing is left to be ended."""
        self._data.remove(PROCESSES_FILE)
        if self._pipe is not None:
            for descriptor in self._pipe:
                os.close(descriptor)
            self._pipe = None

    def _launch(self, child: Child) -> None:
        if self._pipe is None:
            self._pipe = os.pipe()
        reader = self._pipe[0]
        child.log = self._data.log(child.command.name)
        child.log_start = size(child.log)
        child.process = launch(
            child.command.argv,
            log=child.log,
            cwd=self._data.run,
            environment={**child.command.environment, PARENT_PIPE: str(reader)},
            pass_fds=(reader,),
        )
        child.started_at, child.due_at = time.monotonic(), 0.0
        self._record()

    def _record(self) -> None:
        processes = []
        for child in self.living():
            with contextlib.suppress(psutil.Error):
                created = psutil.Process(child.pid).create_time()
                processes.append({"name": child.command.name, "pid": child.pid, "created": created})
        self._data.write(PROCESSES_FILE, {"processes": processes})


def find_leftovers(data: DataDirectory) -> list[psutil.Process]:
    """Processes of an earlier `sender up` on this directory that was killed; never a stranger with a pid of theirs."""
    found = []
    recorded = data.read(PROCESSES_FILE).get("processes")
    for entry in recorded if isinstance(recorded, list) else ():
        with contextlib.suppress(psutil.Error, KeyError, TypeError, ValueError, OverflowError):
            process = psutil.Process(entry["pid"])
            if abs(process.create_time() - entry["created"]) < SAME_START and PROGRAM in process.cmdline():
                found.append(process)
    return found
