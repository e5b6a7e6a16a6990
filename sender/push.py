"""One push now, without queue or campaign, with everything that went over the wire: for trying out an app, a token or
a credential. It has its place under the limits of the app and the installation; nothing else changes in the database.

A paused app holds its campaigns, and not this: it shows whether what the app was paused for is mended.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

from sender.engine.pacing import limits_of, take_grant
from sender.errors import InvalidInputError, MissingExtraError, NotFoundError, SenderError
from sender.model import (
    TOPIC_SUFFIX,
    Accepted,
    Answer,
    CredentialKind,
    CredentialRef,
    Environment,
    Push,
    PushHeaders,
    Rejected,
)
from sender.payload import Encoded, Payload, encode
from sender.planning.plan import check_duration
from sender.policy.outcomes import Rule, rule_for
from sender.policy.states import AppState
from sender.registry.tokens import normalise, prefix
from sender.services import Services
from sender.settings import Settings
from sender.store import apps, inventory, users
from sender.store.apps import App
from sender.store.database import Transaction

#: Seconds for which a single push waits for its turn.
PATIENCE = 30.0


class RateLimitError(SenderError):
    """Raised when the limits leave no room for a single push within half a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a push goes."""

    app: str
    token: str = field(repr=False)
    environment: Environment
    credential: CredentialRef
    app_id: int
    app_rate: float | None  # pushes a second over everything of the app; None: unlimited
    others: int = 0  # further devices of the user that it does not go to
    known: bool = False  # whether the device is registered
    paused: str | None = None  # why the app is paused, and its campaigns wait; None: it is not


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """What went out, and what came back."""

    target: Target
    url: str  # the token shortened
    headers: dict[str, str]  # the authorization's secret left out
    body: bytes
    apns_id: str
    answer: Answer
    seconds: float
    rule: Rule

    @property
    def accepted(self) -> bool:
        """Whether APNs took it over."""
        return isinstance(self.answer, Accepted)


def find_target(
    services: Services,
    bundle_id: str,
    *,
    token: str | None = None,
    user: str | None = None,
    environment: Environment | None = None,
) -> Target:
    """The device of a token, or the one of a user that was seen last. Raises `InvalidInputError`, `NotFoundError`.

    The environment is the one that was asked for, else the registered device's, else the app's only one, else
    production.
    """
    if (token is None) == (user is None):
        raise InvalidInputError("push", ["say which device: a token or a user, one of them"])
    with services.database.transaction() as transaction:
        app = apps.find(transaction, bundle_id)
        if app is None:
            raise NotFoundError("app", bundle_id, "add it with `sender apps add`")
        if user is not None:
            return _of_user(transaction, app, user, environment)
        normal = normalise(token or "")
        known = [device for device in inventory.by_token(transaction, normal, app.id, most=5) if device.token == normal]
        found = known[0].environment if known else _only(app)
        return _target(app, normal, environment or found, known=bool(known))


def push(
    services: Services,
    target: Target,
    payload: Payload | Mapping[str, Any],
    *,
    push_type: str | None = None,
    priority: int | None = None,
    collapse_id: str | None = None,
    expires_in: timedelta | float | None = None,
) -> PushResult:
    """Send one push and wait for its answer. `expires_in`: a timedelta or seconds, 0 for one attempt. Needs the worker
    extra.

    Raises `MissingExtraError`, `InvalidPayloadError`, `InvalidInputError`, `CredentialError`, and `RateLimitError` when
    its turn is more than half a minute off.
    """
    encoded = encode(payload, key=None, push_type=push_type, priority=priority, collapse_id=collapse_id)
    lasting, faults = check_duration("expires_in", expires_in)
    if faults:
        raise InvalidInputError("push", faults)
    seconds = services.settings.expires_in if lasting is None else lasting
    one = Push(
        token=target.token,
        apns_id=str(uuid4()),
        payload=encoded.body,
        headers=PushHeaders(
            topic=target.app + TOPIC_SUFFIX[encoded.push_type],
            push_type=encoded.push_type,
            priority=encoded.priority,
            expiration=int(time.time() + seconds) if seconds else 0,
            collapse_id=encoded.collapse_id,
        ),
    )
    _take_leave(services, target)
    started = time.perf_counter()
    answer = _send(services.settings, target.credential, one)
    return PushResult(
        target=target,
        url=_url(services.settings, target),
        headers=_headers(one, encoded, target),
        body=encoded.body,
        apns_id=one.apns_id,
        answer=answer,
        seconds=time.perf_counter() - started,
        rule=rule_for(answer),
    )


def _take_leave(services: Services, target: Target) -> None:
    """Wait for this push's place under the limits, before campaigns that have none yet. Raises `RateLimitError`."""
    limits = limits_of(
        installation=services.settings.rate,
        app_id=target.app_id,
        app=target.app_rate,
        campaign_id=None,
        campaign=None,
    )
    leave = take_grant(services.database, lambda: limits, 1, threading.Event(), urgent=True, patience=PATIENCE)
    if not leave.pushes:
        raise RateLimitError(
            f"the limits of app {target.app} and of the installation leave no room for another {leave.wait:,.0f} s: "
            f"try again then, or raise them (sender apps rate {target.app} …, SENDER_RATE)"
        )


def other_environment(services: Services, target: Target) -> Target | None:
    """The same token in the other environment; None when the app has no credential for it."""
    other = Environment.SANDBOX if target.environment is Environment.PRODUCTION else Environment.PRODUCTION
    with services.database.transaction() as transaction:
        app = apps.find(transaction, target.app)
    if app is None or other not in app.environments:
        return None
    return _target(app, target.token, other, known=target.known)


def is_wrong_environment(result: PushResult) -> bool:
    """Whether the answer may mean that the token is of the other environment."""
    return isinstance(result.answer, Rejected) and result.answer.reason == "BadDeviceToken"


def _send(settings: Settings, ref: CredentialRef, one: Push) -> Answer:
    try:
        from sender.apns import loop
        from sender.apns.client import open_client
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("sender"):
            raise
        raise MissingExtraError("sender push", "worker") from None

    async def send() -> Answer:
        client = open_client(ref, settings)
        try:
            await client.ready()
            answers = await client.send([one], timeout=settings.apns_timeout)
            return answers[0]
        finally:
            await client.close(timeout=1.0)

    answer: Answer = loop.run(asyncio.wait_for(send(), settings.apns_timeout + settings.apns_connect_timeout + 5))
    return answer


def _of_user(transaction: Transaction, app: App, user: str, environment: Environment | None) -> Target:
    user_id = users.find(transaction, user)
    found = [] if user_id is None else inventory.of_user(transaction, user_id)
    devices = [device for device in found if device.app == app.bundle_id]
    if not devices:
        raise NotFoundError("device", user, f"this user has none for app {app.bundle_id}")
    devices.sort(key=lambda device: (device.pushable, device.last_seen_at or device.created_at), reverse=True)
    chosen = devices[0]
    return replace(_target(app, chosen.token, environment or chosen.environment, known=True), others=len(devices) - 1)


def _target(app: App, token: str, environment: Environment, *, known: bool) -> Target:
    ref = next((ref for ref in app.credentials if ref.environment is environment), None)
    if ref is None:
        raise InvalidInputError(
            "push",
            [
                f"app {app.bundle_id} has no credential for {environment}: add one with `sender apps set-credential "
                f"--environment {environment}`"
            ],
        )
    return Target(
        app=app.bundle_id,
        token=token,
        environment=environment,
        credential=ref,
        app_id=app.id,
        app_rate=app.rate,
        known=known,
        paused=app.state_reason if app.state is AppState.PAUSED else None,
    )


def _only(app: App) -> Environment:
    return app.environments[0] if len(app.environments) == 1 else Environment.PRODUCTION


def _url(settings: Settings, target: Target) -> str:
    sandbox = target.environment is Environment.SANDBOX
    host = settings.apns_sandbox_url if sandbox else settings.apns_production_url
    return f"{host.rstrip('/')}/3/device/{prefix(target.token)}"


def _headers(one: Push, encoded: Encoded, target: Target) -> dict[str, str]:
    headers = {
        "apns-topic": one.headers.topic,
        "apns-push-type": one.headers.push_type.value,
        "apns-priority": str(one.headers.priority),
        "apns-expiration": str(one.headers.expiration),
        "apns-id": one.apns_id,
    }
    if encoded.collapse_id is not None:
        headers["apns-collapse-id"] = encoded.collapse_id
    if target.credential.kind is CredentialKind.KEY:
        headers["authorization"] = "bearer <redacted>"
    return headers
