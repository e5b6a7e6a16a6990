"""aioapns's own HTTP/2 protocol behind the same port: for comparison, and as a way out (SENDER_APNS_PROTOCOL=stock).

It is bounded, never cancels a send (that poisons a connection), and never lets aioapns send again by itself. What it
cannot do stays so: an answer that aioapns loses (a reset, an error without body) is unknown at the deadline.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Collection, Sequence
from functools import partial
from typing import Any, cast

from aioapns.common import NotificationRequest, NotificationResult
from aioapns.connection import APNsBaseConnectionPool, APNsTLSClientProtocol
from aioapns.exceptions import ConnectionClosed, ConnectionError, MaxAttemptsExceeded

from sender.apns.credentials import CertificateCredential, load_credential
from sender.apns.dial import ConnectError, dial, endpoint_of, tls_context
from sender.apns.provider_token import ProviderTokens
from sender.apns.replies import parse_error
from sender.model import ACCEPTED, Answer, CredentialKind, CredentialRef, NotProcessed, Push, Rejected, Unknown
from sender.settings import Settings

_MOST_IN_FLIGHT = 1000  # per client, unanswered and abandoned ones included


class StockProtocol(APNsTLSClientProtocol):
    """aioapns's protocol as it is; only the text that logs and repr would show is left alone."""


class StockPool(APNsBaseConnectionPool):
    """aioapns's pool, with a dial that has a time limit and a `discard_connection` that may be called twice."""

    def __init__(self, client: StockClient, most: int) -> None:
        super().__init__(max_connections=most, max_connection_attempts=1)
        self.protocol_class = type("Protocol", (StockProtocol,), {"APNS_SERVER": client.endpoint.authority})
        self._client = client
        self.last_cause = ""

    async def create_connection(self) -> Any:
        """Connect within the time limit. Raises `ConnectError`."""
        client = self._client
        factory = partial(cast(Any, self.protocol_class), "", self.loop, self.discard_connection, client.tokens)
        timeout = client.settings.apns_connect_timeout
        try:
            return await dial(client.endpoint, client.context, cast(Any, factory), timeout=timeout)
        except ConnectError as error:
            self.last_cause = str(error)
            raise

    def discard_connection(self, connection: Any) -> None:
        """Forget a connection; also one that is forgotten already."""
        if connection in self.connections:
            self.connections.remove(connection)

    async def send_notification(self, request: NotificationRequest) -> NotificationResult:
        """One attempt on one connection: aioapns's own would sleep and try again."""
        connection = await self.acquire()
        return await connection.send_notification(request)


class StockClient:
    """Implements `PushClient` on `StockPool`."""

    def __init__(self, ref: CredentialRef, settings: Settings) -> None:
        self.settings = settings
        self.endpoint = endpoint_of(settings, ref.environment)
        self.tokens = ProviderTokens(ref) if ref.kind is CredentialKind.KEY else None
        certificate = None if self.tokens is not None else load_credential(ref)
        self.context = tls_context(settings, certificate if isinstance(certificate, CertificateCredential) else None)
        self._pool = StockPool(self, settings.apns_connections)
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._closing = False

    def send(self, pushes: Sequence[Push], *, timeout: float) -> Awaitable[list[Answer]]:
        """See `PushClient.send`."""
        if self._closing or len(self._tasks) + len(pushes) > 2 * _MOST_IN_FLIGHT:
            cause = "closed" if self._closing else "too many pushes wait for an answer"
            return _answered([NotProcessed(cause=cause)] * len(pushes))
        tasks = [asyncio.get_running_loop().create_task(self._send(push)) for push in pushes]
        self._tasks.update(tasks)
        for task in tasks:
            task.add_done_callback(self._tasks.discard)
        return asyncio.ensure_future(_collect(tasks, timeout))

    async def ready(self) -> None:
        """See `PushClient.ready`."""
        while len(self._tasks) >= _MOST_IN_FLIGHT and not self._closing:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED, timeout=1.0)
            if self._pool.last_cause and not self._pool.connections:
                return

    def recall(self, sent: Collection[Awaitable[list[Answer]]]) -> int:
        """See `PushClient.recall`: aioapns does not tell what it has written."""
        return 0

    def revive(self) -> None:
        """See `PushClient.revive`: every push tries."""

    async def close(self, *, timeout: float) -> None:
        """See `PushClient.close`."""
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        self._pool.close()

    async def _send(self, push: Push) -> Answer:
        try:
            result = await self._pool.send_notification(_request_of(push))
        except ConnectionError:
            return NotProcessed(cause=f"connect: {self._pool.last_cause}")
        except (ConnectionClosed, MaxAttemptsExceeded) as error:
            return Unknown(cause=f"connection lost: {error}")
        except Exception as error:
            return Unknown(cause=f"aioapns: {type(error).__name__}")
        if result.is_successful:
            return ACCEPTED
        body = json.dumps({"reason": result.description or "", "timestamp": result.timestamp}).encode()
        reason, timestamp = parse_error(body)
        return Rejected(status=int(result.status), reason=reason, timestamp=timestamp)


async def _collect(tasks: Sequence[asyncio.Task[Answer]], timeout: float) -> list[Answer]:
    await asyncio.wait(tasks, timeout=timeout)
    return [task.result() if task.done() else Unknown(cause="timeout") for task in tasks]


def _answered(answers: list[Answer]) -> Awaitable[list[Answer]]:
    future: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
    future.set_result(answers)
    return future


def _request_of(push: Push) -> NotificationRequest:
    """Its time to live is relative to the attempt, so that ours becomes absolute again a moment later."""
    headers = push.headers
    return NotificationRequest(
        device_token=push.token,
        message=json.loads(push.payload),
        notification_id=push.apns_id,
        time_to_live=None if headers.expiration is None else headers.expiration - int(time.time()),
        priority=cast(Any, headers.priority),
        collapse_key=headers.collapse_id,
        push_type=cast(Any, headers.push_type),
        apns_topic=headers.topic,
    )
