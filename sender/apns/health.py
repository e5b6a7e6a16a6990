"""How the connections of one credential are: what a breaker looks at."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Counts since the pool was made, and how it is now."""

    connections: int
    draining: int
    in_flight: int
    backlog: int
    stream_limit: int  # of all connections together
    down: bool  # not able to connect: pushes come back at once
    failures_in_a_row: int
    last_cause: str
    answered: int = 0  # pushes, whatever the answer said
    unreachable_for: float = 0.0  # seconds for which it has been trying to connect, without any connection
    counts: dict[str, int] = field(default_factory=dict)
    # connects, failures (to connect), goaways, goaway_errors, refused (streams), rejected, unanswered (deadlines),
    # lost (connections), broken (lost with pushes in flight), limit_falls (of MAX_CONCURRENT_STREAMS)
