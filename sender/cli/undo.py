"""`sender devices restore` and `sender devices forget`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from sender.cli.campaign_options import read_time
from sender.cli.output import console, error_console, print_json
from sender.cli.tables import counted
from sender.client import Sender
from sender.errors import InvalidInputError
from sender.model import Actor
from sender.registry.restoring import Progress, RestoreReport
from sender.store.forget import Forgotten

AsJson = Annotated[bool, typer.Option("--json", help="As one JSON document.")]

#: What happened since to a device that is left alone.
SINCE = {
    "blocklisted": "are blocklisted now",
    "forgotten": "were forgotten with their user",
    "imported": "were imported anew",
    "invalidated": "were invalidated since: undo that first, then this once more",
    "opted_in": "opted in since",
    "opted_out": "opted out since",
    "quarantined": "were quarantined since: undo that first, then this once more",
    "registered": "registered again since",
    "released": "were released since",
    "restored": "were restored before",
    "revived": "registered again since",
    "rotated": "have a new token",
    "unblocked": "were sent to since",
    "unregistered": "were unregistered since",
}


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for command in (restore, forget):
        app.command()(command)


def restore(
    *,
    campaign: Annotated[str | None, typer.Option(metavar="KEY", help="Undo what this campaign did to tokens.")] = None,
    reason: Annotated[str | None, typer.Option(help="Or what this reason did, such as BadDeviceToken.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --reason: from this time on, 2027-04-01T09:00:00+02:00.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="With --reason: before this time; default: now.")
    ] = None,
    app_id: Annotated[
        str | None, typer.Option("--app", metavar="BUNDLE_ID", help="With --reason: of this app.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count them, and change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put tokens back that a campaign, or a reason in a span of time, invalidated or quarantined.

    They go back to the state they had. What registered again or changed since is left alone. Safe to repeat.
    """
    with Sender() as sender, _progress() as progress:
        report = sender.devices.restore(
            campaign=campaign,
            reason=reason,
            since=read_time(since, "--since"),
            until=read_time(until, "--until"),
            app=app_id,
            dry_run=dry_run,
            actor=Actor.OPERATOR,
            progress=progress,
        )
    if as_json:
        print_json({"total": report.total, "restored": report.restored, "skipped": report.skipped, "dry_run": dry_run})
    else:
        _print_restore(report)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A count on standard error; none when that is no terminal."""
    if not error_console.is_terminal:
        yield None
        return
    with error_console.status("reading the changelog") as status:
        yield lambda done: status.update(f"{done:,} devices")


def _print_restore(report: RestoreReport) -> None:
    verb = "would be restored" if report.dry_run else "restored"
    console.print(f"{counted(report.total, 'device')} {verb}", highlight=False)
    for state, count in sorted(report.restored.items()):
        console.print(f"  {count:,} to {state}", highlight=False)
    if report.skipped:
        console.print(
            f"{counted(sum(report.skipped.values()), 'device')} left alone, because they changed since", highlight=False
        )
    for cause, count in sorted(report.skipped.items()):
        console.print(f"  {count:,} {SINCE.get(cause, f'have since: {cause}')}", highlight=False)


def forget(
    *,
    user: Annotated[str, typer.Option("--user", help="The application's own id of the person.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be erased, and erase nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Erase a person's data for good: tokens, attributes, the id itself, and messages that were for them alone.

    Figures and surrogate ids stay, and one row in the changelog that says that somebody was forgotten.
    """
    with Sender() as sender:
        if not dry_run and not yes:
            _ask(sender.users.forget(user, dry_run=True))
        done = sender.users.forget(user, dry_run=dry_run, actor=Actor.OPERATOR)
    if as_json:
        print_json({**_figures(done), "known": done.known, "dry_run": dry_run})
        return
    if not done.anything:
        console.print("nobody is known by that id: there is nothing to erase")
        return
    console.print(f"{'would be erased' if dry_run else 'erased'}: {_words(done)}", highlight=False, soft_wrap=True)


def _ask(found: Forgotten) -> None:
    if not found.anything:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InvalidInputError("forget", ["nothing was erased: it cannot be undone, so add --yes to do it unasked"])
    if not typer.confirm(f"Erase for good: {_words(found)}?", default=False):
        raise InvalidInputError("forget", ["not confirmed: nothing was erased"])


def _figures(done: Forgotten) -> dict[str, int]:
    names = ("devices", "campaigns", "messages", "changes", "staged")
    return {name: getattr(done, name) for name in names}


def _words(done: Forgotten) -> str:
    parts = [
        counted(done.devices, "device") + (" and the user's id" if done.known else ""),
        f"the user's name in the audience of {counted(done.campaigns, 'campaign')} "
        f"({done.messages:,} of them for nobody else, with their messages)",
        f"{counted(done.changes, 'text')} in the changelog",
        f"{counted(done.staged, 'row')} that waited",
    ]
    counts = (1, done.campaigns, done.changes, done.staged)
    return ", ".join(part for part, count in zip(parts, counts, strict=True) if count)
