"""The clients of a process: one for each credential in each environment, whichever apps use it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Collection, Iterable, Sequence

import structlog

from sender.apns.client import ApnsClient, open_client
from sender.apns.health import Health
from sender.apns.port import PushClient
from sender.model import Answer, CredentialRef, NotProcessed, Push
from sender.settings import Settings

log = structlog.get_logger()

#: Seconds without a push after which a client goes whose credential is kept at another place by now.
SUPERSEDED = 60.0


class Clients:
    """One client per credential and file, so that apps which share a key share its connections.

    The same credential in another file is another client, made before the old one goes: a key that moved is taken up
    without a restart, what is in flight gets its answers, and two apps with copies of a key do not disturb each other.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clients: dict[CredentialRef, PushClient] = {}
        self._used: dict[CredentialRef, float] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._going: set[PushClient] = set()
        self._closed = False

    def get(self, ref: CredentialRef) -> PushClient:
        """The client of a credential, made at first use; on the event loop only. Raises `SenderError`."""
        if self._closed:
            return _Closed()
        client = self._clients.get(ref)
        if client is None:
            client = self._open(ref)
        self._used[ref] = asyncio.get_running_loop().time()
        return client

    async def connected(self, ref: CredentialRef) -> None:
        """Wait until there is a connection for this credential, or none can be had. Raises `SenderError`."""
        client = self.get(ref)
        if isinstance(client, ApnsClient):
            await client.connected()

    async def renew(self, ref: CredentialRef) -> None:
        """Have the next pushes with this credential go out on new connections."""
        for client in self._of(ref.identity):
            await client.renew()

    def revive(self, identity: str) -> None:
        """Let the next push with this credential try to connect, however often that failed before."""
        for client in self._of(identity):
            client.revive()

    def snapshots(self) -> dict[str, Health]:
        """Health by credential identity; on the event loop only."""
        return {
            identity: merged([client.snapshot() for client in self._of(identity)])
            for identity in {ref.identity for ref, client in self._clients.items() if isinstance(client, ApnsClient)}
        }

    async def close(self, *, timeout: float) -> None:
        """Close all clients side by side; afterwards every push comes back as not processed. A second call while the
        first waits for answers is for less patience."""
        self._closed = True
        for task in self._leaving:
            task.cancel()
        self._going.update(self._clients.values())
        self._clients = {}
        await asyncio.gather(*(client.close(timeout=timeout) for client in self._going))

    def _of(self, identity: str) -> list[ApnsClient]:
        return [
            client
            for ref, client in self._clients.items()
            if ref.identity == identity and isinstance(client, ApnsClient)
        ]

    def _open(self, ref: CredentialRef) -> PushClient:
        client = open_client(ref, self._settings)
        older = [other for other in self._clients if other.identity == ref.identity]
        self._clients[ref] = client
        for other in older:
            log.info("apns_credential_moved", credential=ref.identity, file=ref.file)
            self._let_go(other)
        return client

    def _let_go(self, ref: CredentialRef) -> None:
        """Close a client once nobody has used it for a while."""
        loop = asyncio.get_running_loop()
        left = self._used.get(ref, 0.0) + SUPERSEDED - loop.time()
        if left > 0:
            loop.call_later(left, self._let_go, ref)
        elif ref in self._clients:
            task = loop.create_task(self._close_one(self._clients.pop(ref)))
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _close_one(self, client: PushClient) -> None:
        self._going.add(client)
        await client.close(timeout=self._settings.apns_timeout)
        self._going.discard(client)


def merged(found: Sequence[Health]) -> Health:
    """The health of several clients of one credential: the sums, and down only when all are."""
    if len(found) == 1:
        return found[0]
    return Health(
        connections=sum(each.connections for each in found),
        draining=sum(each.draining for each in found),
        in_flight=sum(each.in_flight for each in found),
        backlog=sum(each.backlog for each in found),
        stream_limit=sum(each.stream_limit for each in found),
        down=all(each.down for each in found),
        failures_in_a_row=max(each.failures_in_a_row for each in found),
        last_cause=next((each.last_cause for each in reversed(found) if each.last_cause), ""),
        answered=sum(each.answered for each in found),
        unreachable_for=min(each.unreachable_for for each in found),
        counts=_added(each.counts for each in found),
    )


def _added(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(total)


class _Closed:
    """Stands where a client was: answers that nothing was sent."""

    def send(self, pushes: Sequence[Push], *, timeout: float) -> Awaitable[list[Answer]]:
        future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        future.set_result([NotProcessed(cause="closed")] * len(pushes))
        return future

    async def ready(self) -> None:
        return

    def recall(self, sent: Collection[Awaitable[list[Answer]]]) -> int:
        return 0

    def revive(self) -> None:
        return

    async def close(self, *, timeout: float) -> None:
        return
