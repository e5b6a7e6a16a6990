"""`sender activity`: the message activity log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from sender.activity import Line
from sender.cli.output import console, error_console, print_json
from sender.client import Sender
from sender.store.activity import Removed


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(activity)


def activity(
    *,
    campaign: Annotated[str | None, typer.Option(metavar="KEY", help="Of this campaign only.")] = None,
    app: Annotated[str | None, typer.Option(metavar="BUNDLE_ID", help="Of this app only.")] = None,
    reason: Annotated[str | None, typer.Option(help="With this reason only, such as BadDeviceToken.")] = None,
    user: Annotated[str | None, typer.Option(help="To this user's devices only.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="The successful deliveries too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="At most so many lines.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document a line.")] = False,
) -> None:
    """The message activity log: deliveries that did not succeed, what it means and what to do."""
    with Sender() as sender:
        lines = sender.activity.read(
            campaign=campaign, app=app, reason=reason, user=user, everything=everything, limit=limit
        )
        removed = sender.activity.removed(campaign=campaign, app=app) if len(lines) < limit else []
    gone = [each for each in removed if everything or each.errors]
    if as_json:
        for line in lines:
            print_json(line)
    else:
        _print(lines, limit, reason=reason, complete=not gone)
    _tell_removed(gone)


def _tell_removed(gone: Sequence[Removed]) -> None:
    """What the log does not have any more, on standard error: it is none of the lines."""
    for what, some in (
        ("the successful deliveries", [each for each in gone if not each.errors]),
        ("all deliveries", [each for each in gone if each.errors]),
    ):
        if some:
            newest = max(some, key=lambda each: each.started_on)
            whose = f"{len(some):,} campaigns up to {newest.started_on}" if len(some) > 1 else f"{newest.campaign!r}"
            error_console.print(
                f"removed: {what} of {whose} (see `sender retention`); their reports still count them",
                style="dim",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


def _print(lines: Sequence[Line], limit: int, *, reason: str | None, complete: bool) -> None:
    """A line a delivery, and once a reason what it means."""
    if not lines:
        why = "every delivery succeeded, or none was made yet (--all shows the others)"
        if reason is not None:
            why = f"no delivery has the reason {reason!r} (docs/errors.md lists them)"
        console.print(f"nothing to show: {why if complete else 'what there was is not kept any more'}", soft_wrap=True)
        return
    for line in lines:
        console.print(_text(line), markup=False, highlight=False, soft_wrap=True)
    explained = {line.reason: line for line in lines if line.reason}
    if explained:
        console.print()
    for each, line in explained.items():
        text = f"{each}: {line.meaning} {line.advice}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    if len(lines) == limit:
        console.print(f"the first {limit:,}; --limit shows more", style="dim")


def _text(line: Line) -> str:
    when = f"{line.at:%Y-%m-%d %H:%M:%S}" if line.at else f"again {line.due_at:%m-%d %H:%M:%S}"
    parts = [
        f"{when:<20}",
        f"{line.outcome:<9}",
        f"{line.status or '—':<4}",
        f"{line.reason or '':<24}",
        line.campaign,
        line.token or "(device gone)",
        line.user or "",
    ]
    return " ".join(parts).rstrip()
