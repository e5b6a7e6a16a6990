"""Medians of rounds, and what processes cost: CPU seconds and peak memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Self

import psutil

MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One round of one thing: pushes per second, and CPU microseconds a push of whoever sent them."""

    rate: float
    cpu: float
    peak: int = 0  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Median:
    """The rounds of one thing in one figure each; `low` and `high` are the slowest and the fastest round."""

    rate: float
    low: float
    high: float
    cpu: float
    peak: int


def median_of(samples: Sequence[Sample]) -> Median:
    """The median of each figure; peak memory is the largest."""
    rates = [sample.rate for sample in samples]
    return Median(
        rate=median(rates),
        low=min(rates),
        high=max(rates),
        cpu=median(sample.cpu for sample in samples),
        peak=max(sample.peak for sample in samples),
    )


def peak_memory(pid: int) -> int:
    """The most memory in bytes that a process has had (Linux), or has now (elsewhere); 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return int(psutil.Process(pid).memory_info().rss)
    except (OSError, psutil.Error):
        return 0


def cpu_seconds(process: psutil.Process) -> float:
    """User and system time of a process and of its children that have ended; 0 when it is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


class MemoryWatch:
    """Looks at a process's peak memory until the block ends: `with MemoryWatch(pid) as watch: …; watch.peak`."""

    INTERVAL = 0.1  # seconds

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, peak_memory(self._pid))
            if self._over.wait(self.INTERVAL):
                return
