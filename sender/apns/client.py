"""The APNs client: many pushes in, an answer for each out, for one credential in one environment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import repeat
from typing import Any

import structlog

from sender.apns.batch import Batch, Deadlines
from sender.apns.credentials import CertificateCredential, load_credential
from sender.apns.dial import dial, endpoint_of, tls_context
from sender.apns.health import Health
from sender.apns.pool import WirePool
from sender.apns.port import PushClient
from sender.apns.provider_token import ProviderTokens, file_stamp
from sender.apns.wire import Wire
from sender.errors import SenderError
from sender.model import Answer, CredentialKind, CredentialRef, Push, Unknown
from sender.settings import Settings

log = structlog.get_logger()

_LOOK_EVERY = 5.0  # seconds between two looks at a certificate's file


class ApnsClient:
    """Implements `PushClient`. Lives on the event loop on which it was made. Connects with the first push."""

    def __init__(
        self, ref: CredentialRef, settings: Settings, *, report: Callable[[str, dict[str, Any]], None] | None = None
    ) -> None:
        self.ref = ref
        self.fault: str | None = None  # of a credential that changed on disk and cannot be read any more
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._report_to = report
        self._endpoint = endpoint_of(settings, ref.environment)
        self.tokens = ProviderTokens(ref) if ref.kind is CredentialKind.KEY else None
        self._stamp = file_stamp(ref.file)
        self._next_look = self._loop.time() + _LOOK_EVERY
        self._context = self._make_context()
        self._pool = WirePool(
            dial=self._dial,
            authority=self._endpoint.authority,
            auth_provider=self.tokens,
            most=settings.apns_connections,
            timeout=settings.apns_connect_timeout,
            report=self._report,
        )
        self._deadlines = Deadlines(self._loop, self._expire, self._pool.recall)
        self._open: dict[Batch, asyncio.Future[list[Answer]]] = {}
        self._drained: asyncio.Event = asyncio.Event()

    def send(self, pushes: Sequence[Push], *, timeout: float) -> Awaitable[list[Answer]]:
        """See `PushClient.send`: issues now, answers within `timeout` seconds (and the event loop's delay)."""
        future: asyncio.Future[list[Answer]] = self._loop.create_future()
        if not pushes:
            future.set_result([])
            return future
        batch = Batch(pushes, self._loop.time() + timeout, self._finish)
        self._open[batch] = future
        self._deadlines.add(batch)
        if self.tokens is None and self._loop.time() >= self._next_look:
            self._look_at_certificate()
        self._pool.submit(zip(repeat(batch), range(len(pushes)), strict=False), len(pushes))
        return future

    async def ready(self) -> None:
        """See `PushClient.ready`."""
        await self._pool.ready()

    def recall(self, sent: Collection[Awaitable[list[Answer]]]) -> int:
        """See `PushClient.recall`."""
        wanted = set(map(id, sent))
        return self._pool.recall({batch for batch, future in self._open.items() if id(future) in wanted})

    def revive(self) -> None:
        """See `PushClient.revive`."""
        self._pool.revive()

    async def connected(self) -> None:
        """Wait until there is a connection to issue on, or none can be had."""
        await self._pool.connected()

    async def renew(self) -> None:
        """Have the next pushes go out on new connections; those in flight are answered on the old ones."""
        self._pool.renew("renewed")

    def freeze_token(self) -> bool:
        """Keep the current provider token while it is under 55 minutes old (TooManyProviderTokenUpdates)."""
        return self.tokens is not None and self.tokens.freeze()

    def snapshot(self) -> Health:
        """Counts and state, for a breaker and for people."""
        return self._pool.health

    async def close(self, *, timeout: float) -> None:
        """See `PushClient.close`."""
        self._pool.stop_issuing()
        if self._open:
            self._drained.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._drained.wait()
            except TimeoutError:
                for batch in list(self._open):
                    batch.settle_rest(Unknown(cause="closed"))
        self._pool.close()
        self._deadlines.close()

    def _finish(self, batch: Batch) -> None:
        self._deadlines.remove(batch)
        future = self._open.pop(batch)
        if not future.done():
            future.set_result(batch.answers)  # type: ignore[arg-type]
        if not self._open:
            self._drained.set()

    def _expire(self, batch: Batch) -> None:
        self._pool.expire(batch)
        batch.settle_rest(Unknown(cause="timeout"))

    def _report(self, event: str, fields: dict[str, Any]) -> None:
        if self._report_to is not None:
            self._report_to(event, fields)
        else:
            log.info(event, credential=self.ref.identity, host=self._endpoint.host, **fields)

    async def _dial(self, factory: Callable[[], Wire]) -> Wire:
        return await dial(self._endpoint, self._context, factory, timeout=self._settings.apns_connect_timeout)

    def _make_context(self) -> Any:
        certificate = None
        if self.tokens is None:
            loaded = load_credential(self.ref)
            certificate = loaded if isinstance(loaded, CertificateCredential) else None
        return tls_context(self._settings, certificate)

    def _look_at_certificate(self) -> None:
        """Take up a certificate that was replaced on disk; keep the old one when the new one cannot be read."""
        self._next_look = self._loop.time() + _LOOK_EVERY
        stamp = file_stamp(self.ref.file)
        if stamp == self._stamp and self.fault is None:
            return
        try:
            self._context = self._make_context()
        except SenderError as error:
            if self.fault is None:
                self._report("apns_credential_broken", {"fault": str(error)})
            self.fault = str(error)
            return
        self._stamp, self.fault = stamp, None
        self._report("apns_credential_reloaded", {})
        self._pool.renew("the certificate was replaced")


def open_client(ref: CredentialRef, settings: Settings) -> PushClient:
    """A client for one credential in one environment, on the running event loop. Raises `SenderError`.

    Nothing is connected before the first push. SENDER_APNS_PROTOCOL=stock chooses aioapns's own HTTP/2 protocol.
    """
    if settings.apns_protocol == "stock":
        from sender.apns.stock import StockClient

        return StockClient(ref, settings)
    return ApnsClient(ref, settings)
