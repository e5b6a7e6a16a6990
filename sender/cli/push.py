"""`sender push`: one push now, and everything that is to be known of it."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer

from sender.cli.campaign_options import message_options, read_duration, read_message, with_options
from sender.cli.output import console, print_json
from sender.model import Accepted, Environment, NotProcessed, Rejected, Unknown
from sender.payload import AUTO
from sender.push import PushResult, find_target, is_wrong_environment, other_environment, push
from sender.services import Services


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("push")(push_command)


@with_options(message_options)
def push_command(
    options: dict[str, Any],
    *,
    app: Annotated[str, typer.Option(metavar="BUNDLE_ID", help="The app.")],
    token: Annotated[str | None, typer.Option(help="The device token.")] = None,
    user: Annotated[str | None, typer.Option(help="The user: their device that was seen last.")] = None,
    environment: Annotated[Environment | None, typer.Option(help="The token's; known for registered ones.")] = None,
    expires_in: Annotated[str | None, typer.Option(metavar="30d", help="0: one attempt, never stored.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """Send one push now, without queue or campaign, also of a paused app; show what went out and what the answer means.

    Changes nothing in the database. Exits 1 when APNs did not accept the push.
    """
    message = read_message(options)
    if message["collapse_id"] == AUTO:
        message["collapse_id"] = None
    lasting = read_duration(expires_in, "--expires-in")
    services = Services()
    try:
        target = find_target(services, app, token=token, user=user, environment=environment)
        result = push(services, target, expires_in=lasting, **message)
        _print(result, as_json=as_json)
        if is_wrong_environment(result):
            result = _try_other(services, result, {"expires_in": lasting, **message}, as_json=as_json)
    finally:
        services.close()
    if not result.accepted:
        raise typer.Exit(1)


def _try_other(services: Services, result: PushResult, message: dict[str, Any], *, as_json: bool) -> PushResult:
    """Offer the other environment, and try it when a person says so."""
    target = other_environment(services, result.target)
    if as_json:
        return result
    if target is None:
        _say(f"the app has no credential for the other environment than {result.target.environment}")
        return result
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        _say(f"to try the other one: the same command with --environment {target.environment}")
        return result
    if not typer.confirm(f"Try the same push in {target.environment}?", default=True):
        return result
    second = push(services, target, **message)
    console.print()
    _print(second, as_json=False)
    if second.accepted:
        _say(f"the token is of {target.environment}: register it with environment={target.environment.value!r}")
    return second


def _print(result: PushResult, *, as_json: bool) -> None:
    if as_json:
        print_json(_json(result))
        return
    _say(f"POST {result.url}")
    for name, value in result.headers.items():
        _say(f"{name}: {value}")
    _say(f"{result.body.decode()}")
    console.print(f"{len(result.body)} bytes, {result.target.environment}", style="dim", markup=False, highlight=False)
    if result.target.others:
        _say(f"(the user has {result.target.others} more device(s) in this app; this one was seen last)")
    console.print()
    style = "bold green" if result.accepted else "bold red"
    text = f"{_answer(result)}  in {result.seconds * 1000:.0f} ms"
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
    _say(result.rule.meaning)
    if not result.accepted:
        _say(result.rule.advice)
    if (reason := result.target.paused) is not None:
        _say(f"The app is paused, so that its campaigns wait ({reason}): sender apps resume {result.target.app}")
    if is_wrong_environment(result):
        _say(
            "Builds run from Xcode have sandbox tokens; TestFlight and App Store builds have production tokens. "
            f"This one was tried in {result.target.environment}."
        )


def _json(result: PushResult) -> dict[str, Any]:
    answer = result.answer
    return {
        "environment": result.target.environment,
        "url": result.url,
        "headers": result.headers,
        "payload": json.loads(result.body),
        "bytes": len(result.body),
        "apns_id": result.apns_id,
        "app_paused": result.target.paused,
        "accepted": result.accepted,
        "status": 200 if result.accepted else getattr(answer, "status", None),
        "reason": getattr(answer, "reason", None) or getattr(answer, "cause", None),
        "timestamp": getattr(answer, "timestamp", None),
        "apns_unique_id": getattr(answer, "apns_unique_id", None),
        "meaning": result.rule.meaning,
        "advice": result.rule.advice,
        "seconds": result.seconds,
    }


def _answer(result: PushResult) -> str:
    match result.answer:
        case Accepted(apns_unique_id=unique):
            return "200 accepted" + (f"  apns-unique-id {unique}" if unique else "")
        case Rejected(status=status, reason=reason, timestamp=timestamp):
            since = f"  (not valid since {timestamp:%Y-%m-%d %H:%M:%S %Z})" if timestamp else ""
            return f"{status} {reason or result.rule.reason}{since}"
        case NotProcessed(cause=cause):
            return f"not processed: {cause}"
        case Unknown(cause=cause):
            return f"no answer: {cause}"


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
