"""What a sending program is told to do, and how it says what came of it."""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

#: A campaign's payload as people write them: 216 bytes.
MESSAGE: dict[str, Any] = {
    "aps": {
        "alert": {"title": "Spring sale", "body": "20 % off everything until midnight tonight."},
        "sound": "default",
        "badge": 1,
        "mutable-content": 1,
    },
    "url": "https://shop.example.com/sale",
    "sender": {"campaign": "spring-sale"},
}
PAYLOAD = json.dumps(MESSAGE, separators=(",", ":")).encode()

_TOKENS = 20_000  # distinct ones, sent to again and again


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Where to send and how much: for `seconds`, or `count` pushes when it is not 0."""

    url: str
    ca_file: str
    key_file: str
    key_id: str
    team_id: str
    topic: str
    seconds: float = 3.0
    count: int = 0
    warm_up: int = 500
    connections: int = 4  # at most, where the program can be told
    concurrency: int = 200  # pushes in flight, where the program has no limit of its own

    def to_json(self) -> str:
        """As the program's argument."""
        return json.dumps(asdict(self) | {"tokens": _TOKENS, "message": MESSAGE})


def read_job() -> Job:
    """The job in the first argument."""
    given = json.loads(sys.argv[1])
    return Job(**{name: given[name] for name in Job.__dataclass_fields__})


def tokens() -> list[str]:
    """Made-up device tokens."""
    chance = random.Random(1)
    return [f"{chance.getrandbits(256):064x}" for _ in range(_TOKENS)]


class Meter:
    """Counts answers, and the time and CPU that they took since it was made."""

    def __init__(self) -> None:
        self.answered = self.accepted = 0
        self.longest_gap = 0.0
        self._cpu = _cpu()
        self._started = self._last = time.perf_counter()

    def add(self, answered: int, accepted: int) -> None:
        """Answers came in."""
        now = time.perf_counter()
        self.longest_gap = max(self.longest_gap, now - self._last)
        self._last = now
        self.answered += answered
        self.accepted += accepted

    def say(self) -> None:
        """Print the figures."""
        figures = {
            "answered": self.answered,
            "accepted": self.accepted,
            "seconds": time.perf_counter() - self._started,
            "cpu": _cpu() - self._cpu,
            "longest_gap": self.longest_gap,
        }
        print(json.dumps(figures), flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
