"""Credentials as this host sees them, the way to APNs's servers, and one push to a made-up token."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sender.apns.credentials import check_credential
from sender.apns.dial import ConnectError, dial, endpoint_of, tls_context
from sender.doctor.findings import Finding, Snapshot, failed, ok, warning
from sender.doctor.work import alive
from sender.errors import ConfigurationError, CredentialError, MissingExtraError, SenderError
from sender.model import (
    Accepted,
    Answer,
    CredentialRef,
    Environment,
    NotProcessed,
    Push,
    PushHeaders,
    PushType,
    Rejected,
    Unknown,
)
from sender.policy.outcomes import Halt, TokenStep, rule_for
from sender.settings import Settings

if TYPE_CHECKING:
    from sender.apns.clients import Clients

_NETWORK = "open TCP port 443 (or 2197) to it, or set SENDER_APNS_PROXY_URL; for another server: SENDER_APNS_CA_FILE"


def check_credentials(snapshot: Snapshot, lease: float) -> Iterator[Finding]:
    """Whether every credential can be read here and serves its app. Where only the workers have the files, their word
    counts."""
    if not snapshot.apps:
        yield warning("credentials", "there is no app yet", "add one: `sender apps add`")
    readable = {
        identity for worker in alive(snapshot, lease) for identity, fault in worker.credentials.items() if fault is None
    }
    for app in snapshot.apps:
        if not app.credentials:
            advice = f"give it one: `sender apps set-credential {app.bundle_id}`"
            yield failed("credentials", f"{app.bundle_id} has none", advice)
        for ref in app.credentials:
            yield from _credential(app.bundle_id, ref, snapshot, known_elsewhere=ref.identity in readable)


def _credential(bundle_id: str, ref: CredentialRef, snapshot: Snapshot, *, known_elsewhere: bool) -> Iterator[Finding]:
    what = f"{bundle_id} {ref.environment}"
    try:
        report = check_credential(ref, bundle_id, snapshot.taken_at)
    except CredentialError as error:
        if known_elsewhere:
            yield warning("credentials", f"{what}: not usable here, but a worker can: {error}", "nothing to do")
        else:
            remedy = f"mend the file, or replace it: `sender apps set-credential {bundle_id}`"
            yield failed("credentials", f"{what}: {error}", remedy)
        return
    for word in report.warnings:
        yield warning("credentials", f"{what}: {word}", f"replace it in time: `sender apps set-credential {bundle_id}`")
    end = f", ends {report.ends_at:%Y-%m-%d}" if report.ends_at else ""
    yield ok("credentials", f"{what}: {report.kind} {report.key_id or report.subject}{end}")


# --- the way there ---------------------------------------------------------------------------------------------------


def check_reachable(settings: Settings, snapshot: Snapshot) -> Iterator[Finding]:
    """Whether TCP, the proxy if there is one, and TLS with HTTP/2 lead to the servers of the environments in use."""
    used = {ref.environment for app in snapshot.apps for ref in app.credentials} or set(Environment)
    for environment in Environment:
        if environment in used:
            yield asyncio.run(_reach(settings, environment))


async def _reach(settings: Settings, environment: Environment) -> Finding:
    through = " through the proxy" if settings.apns_proxy_url else ""
    started = time.monotonic()
    try:
        endpoint = endpoint_of(settings, environment)
        context, limit = tls_context(settings), settings.apns_connect_timeout
        protocol = await dial(endpoint, context, _Hangup, timeout=limit)
        protocol.close()
    except ConnectError as error:
        return failed("apns", f"{environment}{through}: {error}", _NETWORK)
    except ConfigurationError as error:
        return failed("apns", f"{environment}: {error}", "correct it: docs/settings.md")
    took = (time.monotonic() - started) * 1000
    return ok("apns", f"{environment} {endpoint.authority} reached{through} in {took:.0f} ms")


class _Hangup(asyncio.Protocol):
    """A connection that is only there to be closed again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def close(self) -> None:
        self._transport.close()


# --- one push --------------------------------------------------------------------------------------------------------


def check_push(settings: Settings, snapshot: Snapshot) -> Iterator[Finding]:
    """Send one push to a made-up token per app and environment, and say what the answer says of the credential."""
    try:
        from sender.apns.clients import Clients
    except ImportError:
        error = MissingExtraError("sender doctor --apns", "worker")
        yield failed("push", "the APNs client is not installed here", str(error))
        return
    targets = [(app.bundle_id, ref) for app in snapshot.apps for ref in app.credentials]
    yield from asyncio.run(_send_all(Clients(settings), targets, settings.apns_timeout))


async def _send_all(clients: Clients, targets: Sequence[tuple[str, CredentialRef]], timeout: float) -> list[Finding]:
    findings = []
    for bundle_id, ref in targets:
        what = f"{bundle_id} {ref.environment}"
        try:
            client = clients.get(ref)
        except SenderError as error:
            findings.append(failed("push", f"{what}: {error}", "see the lines on credentials above"))
            continue
        [answer] = await client.send([made_up_push(bundle_id)], timeout=timeout)
        findings.append(judge_push(what, answer))
    await clients.close(timeout=5.0)
    return findings


def made_up_push(bundle_id: str) -> Push:
    """An alert to a random token: nobody has it, and it is not stored."""
    return Push(
        token=secrets.token_hex(32),
        apns_id=str(uuid.uuid4()),
        payload=b'{"aps":{"alert":"sender doctor"}}',
        headers=PushHeaders(topic=bundle_id, push_type=PushType.ALERT, priority=10, expiration=0),
    )


def judge_push(what: str, answer: Answer) -> Finding:
    """What the answer to a push to a made-up token says of the credential: a fault of the token proves it good."""
    rule = rule_for(answer)
    match answer:
        case Accepted():
            return ok("push", f"{what}: accepted")
        case NotProcessed(cause=cause) | Unknown(cause=cause):
            return failed("push", f"{what}: no answer ({cause})", "see the lines on apns above")
        case Rejected(status=status, reason=reason):
            if rule.token is not TokenStep.NONE:
                return ok("push", f"{what}: the credential was accepted ({reason or status} for a made-up token)")
            message = f"{what}: {status} {reason}: {rule.meaning}"
            if rule.halt is Halt.NONE:
                return warning("push", message, rule.advice)
            return failed("push", message, rule.advice)
