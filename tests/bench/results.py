"""What a run of the benchmark came to: plain values, for the tables, the verdicts and the JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from tests.bench.asking import Asked
from tests.bench.cutting import Cut
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
    beside: ClientRounds = field(default_factory=dict)  # clients alone, in the rounds of `batches`
    rejections: Rejections | None = None
    batches: dict[tuple[int, int], list[Run]] = field(default_factory=dict)  # (workers, batch size)
    answers: dict[tuple[float, float], list[Run]] = field(default_factory=dict)  # (share of dead tokens, latency ms)
    scale: dict[int, list[Run]] = field(default_factory=dict)  # by devices
    growth: Growth | None = None
    singles: list[float] = field(default_factory=list)  # seconds from enqueue to APNs
    peaks: dict[str, int] = field(default_factory=dict)  # bytes by kind of process
    cuts: list[Cut] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    campaign_server: str = ""  # what stood for APNs in batches and scale
    default_batch_size: int = 0

    def client_ratio(self, client: str, other: str) -> float | None:
        """How many times as fast a client is as another: the median of the rounds."""
        for server in ("nginx", "simulator"):
            ours, theirs = self.clients.get((server, client)), self.clients.get((server, other))
            if ours and theirs:
                return median(a.rate / b.rate for a, b in zip(ours, theirs, strict=False))
        return None

    def campaign_ratio(self, other: str) -> float | None:
        """How many times as fast end to end is, with the default batch size and as many workers as are fastest, as a
        client alone: the median of the rounds, in each of which both were measured."""
        theirs = self.beside.get((self.campaign_server, other))
        runs = [found for (_, size), found in self.batches.items() if size == self.default_batch_size]
        if not theirs or not runs:
            return None
        return max(median(a.rate / b.rate for a, b in zip(ours, theirs, strict=False)) for ours in runs)


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and most."""
    return median(values), min(values), max(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-len(ordered) * share // 1) - 1))]
