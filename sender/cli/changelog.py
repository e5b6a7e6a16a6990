"""`sender changelog`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from sender.cli.output import console, jsonable, print_json
from sender.cli.tables import moment, print_table, table
from sender.client import Sender
from sender.model import Change
from sender.registry.tokens import prefix

_POLL = 1.0  # seconds between two looks of --follow


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(changelog)


def changelog(
    *,
    user: Annotated[str | None, typer.Option(help="Rows of this user.", show_default=False)] = None,
    device: Annotated[
        str | None, typer.Option(metavar="TOKEN", help="Rows of this device; the token's beginning is enough.")
    ] = None,
    campaign: Annotated[str | None, typer.Option(metavar="KEY", help="What this campaign brought about.")] = None,
    app_id: Annotated[str | None, typer.Option("--app", metavar="BUNDLE_ID", help="Rows of this app.")] = None,
    after: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="As a feed without gaps: what comes after this cursor (0-0: all)."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many rows.")] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new rows as they come.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON list (with --follow: an object a line).")] = False,
) -> None:
    """The push changelog: what happened to tokens, when and why. Without --after the newest rows."""
    only: dict[str, Any] = {"user": user, "device": device, "campaign": campaign, "app": app_id}
    with Sender() as sender:
        if after is None:
            changes: Iterable[Change] = sender.changelog.latest(limit, **only)
        else:
            changes = sender.changelog.read(after, limit, **only)
        found = list(changes)
        if follow:
            _follow(sender, found, after, limit, only, as_json=as_json)
            return
    print_changes(found, as_json=as_json)
    if found and found[-1].cursor and not as_json:
        console.print(f"go on with --after {found[-1].cursor}", style="dim", highlight=False)


def _follow(
    sender: Sender, changes: list[Change], after: str | None, limit: int, only: dict[str, Any], *, as_json: bool
) -> None:
    try:
        settled = [change for change in changes if change.cursor is not None]
        while after is None and len(changes) == limit and not settled:  # all of them wait for an older transaction
            time.sleep(_POLL)
            changes = sender.changelog.latest(limit, **only)
            settled = [change for change in changes if change.cursor is not None]
        cursor = (settled[-1].cursor if settled else after) or "0-0"
        while True:
            for change in settled:
                print_json(change) if as_json else console.print(_line(change), markup=False, highlight=False)
            page = sender.changelog.read(cursor, limit, **only)
            settled, cursor = list(page), page.cursor or cursor
            if not settled:
                time.sleep(_POLL)
    except KeyboardInterrupt:
        return


def print_changes(changes: Sequence[Change], *, as_json: bool) -> None:
    """Rows as a table, or as one JSON list."""
    if as_json:
        print_json(changes)
        return
    rows = table("when (UTC)", "what", "device", "user", "app", "why", "campaign", "change", "by")
    for change in changes:
        rows.add_row(*_cells(change))
    print_table(rows)


def _line(change: Change) -> str:
    return "  ".join(cell for cell in _cells(change) if cell)


def _cells(change: Change) -> tuple[str, ...]:
    return (
        moment(change.at),
        change.kind,
        "" if change.token is None else prefix(change.token),
        change.user or "",
        change.app or "",
        change.reason or "",
        change.campaign or "",
        _difference(change),
        change.actor,
    )


def _difference(change: Change) -> str:
    """What changed, as old → new; only the new value where there was none."""
    old, new = jsonable(change.old or {}), jsonable(change.new or {})
    parts = []
    for name in dict.fromkeys([*old, *new]):
        if name in old and name in new:
            parts.append(f"{name} {_shown(old[name])} → {_shown(new[name])}")
        elif name in new:
            parts.append(f"{name} {_shown(new[name])}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    return "nobody" if value is None else str(value)
