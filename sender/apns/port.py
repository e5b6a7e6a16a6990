"""The small protocol between the delivery of batches and whatever sends: many pushes in, an answer for each out."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Sequence
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

    def recall(self, sent: Collection[Awaitable[list[Answer]]]) -> int:
        """Take back what these calls of `send` gave and what was not written to a connection yet.

        Those pushes are answered with `NotProcessed("recalled")` at once: nobody got them, and they must not be sent
        again by whoever took them back. Returns how many; a client that cannot tell takes back none.
        """
        ...

    def revive(self) -> None:
        """Let the next push try to connect, however often that failed before."""
        ...

    async def close(self, *, timeout: float) -> None:
        """Stop issuing, wait at most `timeout` seconds for the answers in flight, close the connections."""
        ...
