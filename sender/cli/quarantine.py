"""`sender devices quarantined`, `release`, `confirm`."""

from __future__ import annotations

from typing import Annotated

import typer

from sender.cli.output import console, print_json
from sender.cli.tables import counted, moment, print_table, table
from sender.client import Sender
from sender.model import Actor
from sender.policy.outcomes import explain
from sender.registry.quarantine import Quarantine
from sender.registry.tokens import prefix

AnyApp = Annotated[str | None, typer.Option("--app", metavar="BUNDLE_ID", help="Of this app only.")]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON document.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Count them, and change nothing.")]
Tokens = Annotated[
    list[str] | None, typer.Argument(metavar="[TOKEN…]", help="Tokens, or their beginnings.", show_default=False)
]
Campaign = Annotated[str | None, typer.Option(metavar="KEY", help="All that this campaign put into quarantine.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for command in (quarantined, release, confirm):
        app.command()(command)


def quarantined(
    app_id: AnyApp = None,
    reason: Annotated[str | None, typer.Option(help="For this reason only, such as BadDeviceToken.")] = None,
    campaign: Annotated[str | None, typer.Option(metavar="KEY", help="Put there by this campaign.")] = None,
    limit: Annotated[int, typer.Option(min=0, max=100_000, help="List at most so many; the counts are whole.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Devices in quarantine: left out of every audience, tried again in small shares, the longest ago first."""
    with Sender() as sender:
        found = sender.devices.quarantined(app=app_id, reason=reason, campaign=campaign, limit=limit)
    if as_json:
        devices = [
            {
                "token": prefix(device.token),
                "app": device.app,
                "environment": device.environment,
                "reason": device.reason,
                "campaign": device.campaign,
                "since": device.since,
            }
            for device in found.devices
        ]
        print_json({"total": found.total, "by_reason": found.by_reason, "devices": devices})
        return
    _print(found)


def _print(found: Quarantine) -> None:
    if not found.total:
        console.print("no device is in quarantine")
        return
    rows = table("device", "app", "environment", "reason", "campaign", "since (UTC)")
    for device in found.devices:
        rows.add_row(
            prefix(device.token),
            device.app,
            device.environment,
            device.reason or "",
            device.campaign or "",
            moment(device.since),
        )
    if found.devices:
        print_table(rows)
        console.print()
    counts = table("reason", "#devices", "meaning")
    for reason, number in found.by_reason.items():
        counts.add_row(reason or "unknown", f"{number:,}", explain(reason)[0])
    counts.add_row("total", f"{found.total:,}", "", style="bold")
    print_table(counts)


def release(
    tokens: Tokens = None,
    *,
    campaign: Campaign = None,
    app_id: AnyApp = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let devices out of quarantine: they are sent to again."""
    _leave(tokens or [], campaign, app_id, confirmed=False, dry_run=dry_run, as_json=as_json)


def confirm(
    tokens: Tokens = None,
    *,
    campaign: Campaign = None,
    app_id: AnyApp = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Confirm that quarantined tokens are invalid. Registering again revives them; `restore --reason` undoes it."""
    _leave(tokens or [], campaign, app_id, confirmed=True, dry_run=dry_run, as_json=as_json)


def _leave(
    tokens: list[str], campaign: str | None, app_id: str | None, *, confirmed: bool, dry_run: bool, as_json: bool
) -> None:
    with Sender() as sender:
        leave = sender.devices.confirm if confirmed else sender.devices.release
        count = leave(tokens, campaign=campaign, app=app_id, dry_run=dry_run, actor=Actor.OPERATOR)
    if as_json:
        print_json({"confirmed" if confirmed else "released": count, "dry_run": dry_run})
        return
    what = "confirmed as invalid" if confirmed else "released"
    console.print(f"{counted(count, 'device')} {'would be ' if dry_run else ''}{what}", highlight=False)
