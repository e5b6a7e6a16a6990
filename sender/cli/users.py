"""`sender users …`."""

from __future__ import annotations

from typing import Annotated

import typer

from sender.cli.changelog import print_changes
from sender.cli.devices import device_json, device_table
from sender.cli.output import console, print_json
from sender.cli.tables import listed, moment, print_table, table
from sender.client import Sender
from sender.registry.tokens import prefix

app = typer.Typer(no_args_is_help=True)


@app.callback()
def _users() -> None:
    """The application's users."""


@app.command()
def show(
    user: Annotated[str, typer.Argument(help="The application's own id of the user.")],
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many deliveries and changelog rows.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON document.")] = False,
) -> None:
    """A user's devices across apps, recent deliveries and changelog."""
    with Sender() as sender:
        found = sender.users.show(user, most=limit)
    if as_json:
        print_json(
            {
                "user": found.user,
                "pushable_apps": found.pushable_apps,
                "devices": [device_json(device) for device in found.devices],
                "deliveries": found.deliveries,
                "changes": found.changes,
            }
        )
        return
    console.print(f"user {found.user}, pushable apps: {listed(found.pushable_apps)}", markup=False, highlight=False)
    print_table(device_table(found.devices))
    if found.deliveries:
        console.print("\nrecent deliveries")
        rows = table("when (UTC)", "campaign", "app", "device", "outcome", "#status", "reason")
        for each in found.deliveries:
            status = "" if each.status is None else str(each.status)
            rows.add_row(
                moment(each.at), each.campaign, each.app, prefix(each.token), each.outcome, status, each.reason or ""
            )
        print_table(rows)
    console.print("\nchangelog")
    print_changes(found.changes, as_json=False)
