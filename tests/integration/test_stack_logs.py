"""Logs of a long run: put aside while the process that writes them goes on."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from sender.stack import logs
from sender.stack.datadir import DataDirectory
from sender.stack.launch import launch, tail
from sender.stack.logs import Logs

WRITER = "import sys\nfor line in sys.stdin: print(line.strip() * 10, flush=True)"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_long_log_is_put_aside_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_LIMIT", 100)
    data = DataDirectory(tmp_path / "data")
    data.create()
    clock = Clock()
    kept = Logs(data, clock)
    log = data.log("worker")
    process = launch([sys.executable, "-c", WRITER], log=log, cwd=tmp_path, environment={}, stdin=subprocess.PIPE)
    assert process.stdin is not None

    def write(letter: str) -> None:
        before = log.stat().st_size
        process.stdin.write(f"{letter * 5}\n".encode())  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        while log.stat().st_size == before:
            pass

    try:
        for _ in range(3):
            write("a")
        kept.tend()
        assert log.stat().st_size == 153  # not yet time to look
        clock.now += logs.EVERY
        kept.tend()
        assert log.read_text() == ""
        write("b")
    finally:
        process.stdin.close()
        process.wait(10)
    aside = data.logs / "worker.log.1"
    assert aside.read_text() == ("a" * 50 + "\n") * 3
    assert log.read_text() == "b" * 50 + "\n"  # from its beginning: no hole
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert tail(log, since=153) == "b" * 50


def test_short_logs_stay_as_they_are(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "data")
    data.create()
    data.log("beat").write_text("short")
    clock = Clock()
    kept = Logs(data, clock)
    clock.now += logs.EVERY
    kept.tend()
    assert [path.name for path in data.logs.iterdir()] == ["beat.log"]
