"""`sender apps …`."""

from __future__ import annotations

import sys
from dataclasses import fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from sender.cli.campaign_show import stopped_text
from sender.cli.output import console, print_json
from sender.cli.tables import facts, listed, moment, print_table, table
from sender.client import Sender
from sender.errors import CredentialError, InvalidInputError
from sender.model import CredentialRef
from sender.store.breakers import Breaker

app = typer.Typer(no_args_is_help=True)


class Environments(StrEnum):
    """What a credential is for."""

    PRODUCTION = "production"
    SANDBOX = "sandbox"
    BOTH = "both"


BundleId = Annotated[str, typer.Argument(help="Such as com.example.news.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON document.")]
TeamId = Annotated[str | None, typer.Option(help="Of the key: 10 characters.", show_default=False)]
KeyId = Annotated[
    str | None, typer.Option(help="Of the key; by default from the name AuthKey_XXXXXXXXXX.p8.", show_default=False)
]
KeyFile = Annotated[Path | None, typer.Option(help="A .p8 signing key.", show_default=False)]
CertificateFile = Annotated[Path | None, typer.Option(help="A .p12 or .pem certificate.", show_default=False)]
PassphraseEnv = Annotated[
    str | None, typer.Option(help="The environment variable with the certificate's passphrase.", show_default=False)
]
Environment = Annotated[Environments, typer.Option(help="What the credential is for.")]


@app.command()
def add(
    bundle_id: BundleId,
    *,
    team_id: TeamId = None,
    key_id: KeyId = None,
    key_file: KeyFile = None,
    certificate_file: CertificateFile = None,
    passphrase_env: PassphraseEnv = None,
    environment: Environment = Environments.BOTH,
) -> None:
    """Add an app with its credential. Files are read now to check them, and referred to ever after."""
    with Sender() as sender:
        added = sender.apps.add(
            bundle_id,
            team_id=team_id,
            key_id=key_id,
            key_file=key_file,
            certificate_file=certificate_file,
            passphrase_env=passphrase_env,
            environment=environment.value,
        )
    console.print(f"{bundle_id} can push in {listed(added.environments)}", highlight=False)


@app.command()
def set_credential(
    bundle_id: BundleId,
    *,
    team_id: TeamId = None,
    key_id: KeyId = None,
    key_file: KeyFile = None,
    certificate_file: CertificateFile = None,
    passphrase_env: PassphraseEnv = None,
    environment: Environment = Environments.BOTH,
) -> None:
    """Replace an app's credential, for one environment or both."""
    with Sender() as sender:
        changed = sender.apps.set_credential(
            bundle_id,
            team_id=team_id,
            key_id=key_id,
            key_file=key_file,
            certificate_file=certificate_file,
            passphrase_env=passphrase_env,
            environment=environment.value,
        )
    console.print(f"{bundle_id} can push in {listed(changed.environments)}", highlight=False)
    if changed.state == "paused":
        console.print(f"it is paused ({changed.state_reason}): sender apps resume {bundle_id}", highlight=False)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Every app."""
    with Sender() as sender:
        apps = sender.apps.list()
    if as_json:
        print_json(apps)
        return
    rows = table("app", "state", "environments", "credential", "#rate")
    for each in apps:
        kinds = listed(sorted({str(ref.kind) for ref in each.credentials}))
        rate = "unlimited" if each.rate is None else f"{each.rate:g}/s"
        rows.add_row(each.bundle_id, each.state, listed(each.environments), kinds, rate)
    print_table(rows)


@app.command()
def show(bundle_id: BundleId, as_json: AsJson = False) -> None:
    """One app: its state, and what each credential serves and when it ends."""
    with Sender() as sender:
        found = sender.apps.show(bundle_id)
        devices = sender.apps.count_devices(bundle_id)
        breakers = sender.apps.breakers(bundle_id)
        credentials = [_inspected(sender, ref) | _doing(breakers[ref.environment]) for ref in found.credentials]
    if as_json:
        print_json(
            {
                "bundle_id": found.bundle_id,
                "state": found.state,
                "state_reason": found.state_reason,
                "state_changed_at": found.state_changed_at,
                "rate": found.rate,
                "healing": found.healing,
                "created_at": found.created_at,
                "devices": devices,
                "credentials": credentials,
            }
        )
        return
    pairs = [
        ("app", found.bundle_id),
        ("state", found.state + (f": {found.state_reason}" if found.state_reason else "")),
        ("rate", "unlimited" if found.rate is None else f"{found.rate:g} pushes/s"),
        ("environment healing", "on" if found.healing else "off"),
        ("devices", f"{devices:,}"),
    ]
    for credential in credentials:
        pairs += [
            (name.replace("_", " "), _shown(value))
            for name, value in credential.items()
            if value not in (None, []) and name != "breaker"
        ]
    print_table(facts(pairs))


def _doing(breaker: Breaker) -> dict[str, Any]:
    """How a credential is doing, in words and, for programs, in parts."""
    parts = {each.name: getattr(breaker, each.name) for each in fields(breaker) if each.name != "credential"}
    return {"sending": breaker.in_words(), "breaker": parts}


def _shown(value: Any) -> str:
    if isinstance(value, datetime):
        return f"{moment(value)} UTC"
    return listed(value) if isinstance(value, list) else str(value)


def _inspected(sender: Sender, ref: CredentialRef) -> dict[str, Any]:
    """A credential as it is kept, and what a look into its file says now."""
    kept = {
        "environment": ref.environment,
        "kind": ref.kind,
        "file": ref.file,
        "team_id": ref.team_id,
        "key_id": ref.key_id,
        "passphrase_env": ref.passphrase_env,
    }
    try:
        report = sender.apps.inspect_credential(ref)
    except CredentialError as error:
        return {**kept, "faults": list(error.faults)}
    return {
        **kept,
        "subject": report.subject,
        "topics": list(report.topics),
        "serves": [str(each) for each in report.environments],
        "ends_at": report.ends_at,
        "fingerprint": report.fingerprint,
        "warnings": list(report.warnings),
    }


@app.command()
def remove(
    bundle_id: BundleId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove an app with its devices and finished campaigns. Refused while campaigns run."""
    with Sender() as sender:
        devices = sender.apps.count_devices(bundle_id)
        if devices and not yes:
            _confirm(bundle_id, devices)
        sender.apps.remove(bundle_id)
    console.print(f"{bundle_id} is removed, with {devices:,} devices", highlight=False)


def _confirm(bundle_id: str, devices: int) -> None:
    if not sys.stdin.isatty():
        raise InvalidInputError(bundle_id, [f"it has {devices:,} devices, which would be deleted: add --yes"])
    typed = typer.prompt(f"This deletes {devices:,} devices. Type the bundle id to go on")
    if typed.strip() != bundle_id:
        raise InvalidInputError(bundle_id, ["that is not its bundle id: nothing was removed"])


@app.command()
def rate(
    bundle_id: BundleId,
    pushes: Annotated[str, typer.Argument(metavar="RATE", help="Pushes a second, or unlimited.")],
) -> None:
    """Limit an app's pushes a second, over all campaigns and workers."""
    try:
        wanted = None if pushes == "unlimited" else float(pushes)
    except ValueError:
        raise InvalidInputError("rate", [f"{pushes!r} is neither a number of pushes a second nor unlimited"]) from None
    with Sender() as sender:
        sender.apps.set_rate(bundle_id, wanted)
    console.print(f"{bundle_id}: {'unlimited' if wanted is None else f'{wanted:g} pushes/s'}", highlight=False)


class Switch(StrEnum):
    """On or off."""

    ON = "on"
    OFF = "off"


@app.command()
def heal(
    bundle_id: BundleId,
    switch: Annotated[Switch, typer.Argument(help="on or off.", show_default=False)],
) -> None:
    """Try refused tokens (BadDeviceToken) in the other environment, and move those that are accepted there."""
    with Sender() as sender:
        changed = sender.apps.set_healing(bundle_id, switch is Switch.ON)
    console.print(f"{bundle_id}: environment healing is {'on' if changed.healing else 'off'}", highlight=False)


@app.command()
def pause(
    bundle_id: BundleId,
    reason: Annotated[str, typer.Option(help="Why, for the others.")] = "paused by a person",
) -> None:
    """Stop all campaigns of an app where they are. Returns when the workers have stopped, or after a second."""
    with Sender() as sender:
        paused = sender.apps.pause(bundle_id, reason)
        running = sender.campaigns.list(app=bundle_id, state="running", limit=10_000)
        stopped = [sender.campaigns.report(row.key) for row in running]
        heeded = sender.apps.halted(bundle_id)
        why = "" if paused else f" already: {sender.apps.show(bundle_id).state_reason}"
    console.print(f"{bundle_id} is paused{why}", markup=False, highlight=False)
    if stopped:
        console.print(stopped_text(stopped, heeded), markup=False, highlight=False, soft_wrap=True)


@app.command()
def resume(bundle_id: BundleId) -> None:
    """Let all campaigns of an app go on where they stopped."""
    with Sender() as sender:
        resumed = sender.apps.resume(bundle_id)
    console.print(f"{bundle_id} goes on" if resumed else f"{bundle_id} is not paused", highlight=False)


@app.command()
def close_breaker(bundle_id: BundleId, *, environment: Environment = Environments.BOTH) -> None:
    """Send again at once with a credential that rests because APNs was in trouble. It comes back by itself."""
    with Sender() as sender:
        closed = sender.apps.close_breaker(bundle_id, environment.value)
    if not closed:
        console.print(f"no credential of {bundle_id} rests", highlight=False)
        return
    for identity in closed:
        console.print(f"{identity} sends again, slowly at first", highlight=False)
    console.print(
        "APNs may block a sender that goes on while it is refused: what opened this opens it again, for longer",
        style="yellow",
        highlight=False,
    )
