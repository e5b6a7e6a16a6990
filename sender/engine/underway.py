"""Pushes that were handed to a client and wait for their answers: those that were not written yet are taken back when
their claim must stop, or their credential must rest."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sender.apns.port import PushClient
from sender.engine.leases import Lease
from sender.model import Answer

#: Seconds between two looks at whether what waits may still be sent.
INTERVAL = 0.1


@dataclass(slots=True, kw_only=True, eq=False)
class Sending:
    """The slices of one claim with one client."""

    lease: Lease
    identity: str
    client: PushClient
    waiting: Sequence[Awaitable[list[Answer]]]  # grows while it is issued
    recalled: int = 0  # slices of it that were recalled


class Underway:
    """Everything that is under way on one event loop. One timer, and only while there is something."""

    def __init__(self, may_send: Callable[[Lease, str], bool]) -> None:
        self._may_send = may_send
        self._sendings: dict[Sending, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def watch(
        self, lease: Lease, identity: str, client: PushClient, waiting: Sequence[Awaitable[list[Answer]]]
    ) -> Iterator[None]:
        """Recall what is in `waiting`, also what is added to it, when it must not be sent any more."""
        sending = Sending(lease=lease, identity=identity, client=client, waiting=waiting)
        self._sendings[sending] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look)
        try:
            yield
        finally:
            del self._sendings[sending]

    def _look(self) -> None:
        for sending in list(self._sendings):
            if len(sending.waiting) > sending.recalled and not self._may_send(sending.lease, sending.identity):
                sending.recalled = len(sending.waiting)
                sending.client.recall(sending.waiting)
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._look) if self._sendings else None
