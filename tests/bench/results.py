"""What a run of the benchmark came to: plain values, for the tables, the verdicts and the JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.bench.measure import Sample
from tests.bench.stack import Run

#: (server, client) → rounds.
ClientRounds = dict[tuple[str, str], list[Sample]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejections:
    """100,000 rejections in a row."""

    count: int
    rejected: int
    connections: int
    rate: float
    cpu: float  # microseconds a push
    longest_gap: float  # seconds without an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """A worker's memory (bytes) while it sends: when the window began, at its end, and the most in between."""

    first_push: int
    last_push: int
    begin: int
    end: int
    most: int

    @property
    def ratio(self) -> float:
        """The most in the window to its begin."""
        return self.most / self.begin


@dataclass(slots=True, kw_only=True)
class Results:
    """Everything that was measured; what was not is empty."""

    clients: ClientRounds = field(default_factory=dict)
    rejections: Rejections | None = None
    batches: dict[tuple[int, int], list[Run]] = field(default_factory=dict)  # (workers, batch size)
    answers: dict[tuple[float, float], list[Run]] = field(default_factory=dict)  # (share of dead tokens, latency ms)
    scale: dict[int, list[Run]] = field(default_factory=dict)  # by devices
    growth: Growth | None = None
    singles: list[float] = field(default_factory=list)  # seconds from enqueue to APNs
    peaks: dict[str, int] = field(default_factory=dict)  # bytes by kind of process
    campaign_server: str = ""  # what stood for APNs in batches and scale
    default_batch_size: int = 0

    def client_rate(self, client: str) -> float | None:
        """The median rate of a client, on the fastest server that was there."""
        for server in ("nginx", "simulator"):
            if found := self.clients.get((server, client)):
                return median(sample.rate for sample in found)
        return None

    def client_ratio(self, client: str, other: str) -> float | None:
        """How many times as fast a client is as another: the median of the rounds."""
        for server in ("nginx", "simulator"):
            ours, theirs = self.clients.get((server, client)), self.clients.get((server, other))
            if ours and theirs:
                return median(a.rate / b.rate for a, b in zip(ours, theirs, strict=False))
        return None

    def campaign_rate(self) -> float | None:
        """The median rate end to end with the default batch size, with as many workers as were fastest."""
        rates = [
            median(run.rate for run in runs)
            for (_, size), runs in self.batches.items()
            if size == self.default_batch_size
        ]
        return max(rates, default=None)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return median(values), min(values), max(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * share // 1) - 1))]
