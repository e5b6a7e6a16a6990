"""kombu's Redis transport, without two things that cost a small batch more than its push does, and with more places
for small batches than for others.

kombu makes a new `redis.Redis` for every command, which is a lot of set-up around the same pool of connections; here a
channel keeps one.

And kombu notes every message that a worker takes in Redis, and strikes it off when it is acknowledged, so that what a
dead worker had is delivered again an hour later. A send is only a hint that a batch exists: the database knows within a
lease that its worker died, and publishes it again. So processes that take nothing but sends have `ack_emulation` off
(kombu's own option), and keep in memory what they have not acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES, _transport_cache, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads

from sender.policy.pace import SMALL, SMALL_TIMES

log = structlog.get_logger()

#: The schemes of broker URLs that this is for; Sentinel and other brokers have kombu's own.
SCHEMES = ("redis", "rediss")


class QoS(virtual.QoS):
    """What a process has taken and not acknowledged, where Redis does not know of it. While its batches are large, only
    one in `SMALL_TIMES` of its places is used."""

    def can_consume(self) -> bool:
        """Whether another message may be taken."""
        return not self.prefetch_count or self.free() > 0

    def free(self) -> int:
        """How many places there are for more messages."""
        places = self.prefetch_count if _batches.small else max(1, self.prefetch_count // SMALL_TIMES)
        return places - (len(self._delivered) - len(self._dirty))

    def restore_unacked(self) -> list[Any]:
        """Put back what was taken, as at the end of a process. What the broker does not take now, the database
        publishes again: neither is it tried one by one nor written to a file."""
        self._flush()  # type: ignore[no-untyped-call]
        messages = list(self._delivered.values())
        self._delivered.clear()
        try:
            for message in messages:
                self.channel._restore(message)
        except Exception as error:
            log.info("messages_not_put_back", error=type(error).__name__)
        return []


class _Batches:
    """What this process has been sending lately."""

    small = False


_batches = _Batches()


def note_size(devices: int) -> None:
    """Take so many more messages at a time, or so many fewer, as suits a batch of this size. Thread-safe."""
    _batches.small = devices <= SMALL


class Channel(redis.Channel):
    """kombu's, but with one client for as long as its pool of connections lives. (The client may be used by many
    threads at once; it takes a connection from the pool for each command.)"""

    _kept: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]
        if not self.ack_emulation:
            self.QoS = QoS  # type: ignore[assignment]

    def _brpop_read(self, **options: Any) -> bool | None:
        """Take the message that was waited for, and as many as there are places for of those behind it, in one round
        trip."""
        found: bool | None = super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        if found and isinstance(self.qos, QoS):
            for queue in self.active_queues:
                self._take_more(queue, self.qos.free())
        return found

    def _take_more(self, queue: str, most: int) -> None:
        if most <= 0:
            return
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for _ in range(most):
                pipe.rpop(self._q_for_pri(queue, 0))  # type: ignore[no-untyped-call]  # nothing has a priority
            taken = pipe.execute()
        for message in taken:
            if message is not None:
                self.connection._deliver(loads(bytes_to_str(message)), queue)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The given client, or the channel's own."""
        if client is None:
            client = self._kept
            if client is None or client.connection_pool is not self.pool:  # a fork, or a new connection, has a new one
                client = self._kept = self._create_client()  # type: ignore[no-untyped-call]
        yield client


class Transport(redis.Transport):
    """kombu's, with these channels."""

    Channel = Channel


def use_this_transport() -> None:
    """Have kombu take this transport in this process."""
    for scheme in SCHEMES:
        _transport_cache.pop(scheme, None)  # somebody may have connected before
        TRANSPORT_ALIASES[scheme] = f"{__name__}:{Transport.__name__}"
