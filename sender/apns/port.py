"""The small protocol between the delivery of batches and whatever sends: many pushes in, an answer for each out."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from sender.model import Answer, Push


class PushClient(Protocol):
    """Sends pushes with one credential in one environment. Used on one event loop only."""

    def send(self, pushes: Sequence[Push], *, timeout: float) -> Awaitable[list[Answer]]:
        """Issue the pushes now, in order; the awaitable gives one answer a push, in the same order.

        Never raises for an answer, and never sends a push twice. Every push has its answer within `timeout` seconds
        of this call (`Unknown("timeout")` otherwise); awaiting may be given up without disturbing anything.
        """
        ...

    async def ready(self) -> None:
        """Wait until there is room for more: back-pressure instead of an unbounded queue.

        Returns at once when the client is not able to connect: the pushes then come back as `NotProcessed`.
        """
        ...

    async def close(self, *, timeout: float) -> None:
        """Stop issuing, wait at most `timeout` seconds for the answers in flight, close the connections."""
        ...
