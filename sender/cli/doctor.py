"""`sender doctor`: a line for each check, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer
from rich.markup import escape

from sender.cli.output import console, print_json
from sender.doctor import NAMES, Finding, Status, examine
from sender.errors import ConfigurationError, InvalidInputError
from sender.settings import load_settings

_MARKS = {
    Status.OK: "[green]ok     [/]",
    Status.WARNING: "[yellow]warning[/]",
    Status.FAILED: "[red]failed [/]",
    Status.SKIPPED: "[dim]skipped[/]",
}


def register(app: typer.Typer) -> None:
    """Add this file's commands."""

    @app.command()
    def doctor(
        push: Annotated[
            bool, typer.Option("--apns", help="Also send one push to a made-up token per app and environment.")
        ] = False,
        only: Annotated[
            list[str] | None, typer.Option("--only", help=f"Run these checks alone: {', '.join(NAMES)}.")
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    ) -> None:
        """Look at everything that sending needs, and say what to do. Exits 1 when something failed."""
        findings = _examine(push=push, only=only or [])
        seen = list(findings) if as_json else list(_shown(findings))
        healthy = all(finding.status is not Status.FAILED for finding in seen)
        if as_json:
            print_json({"ok": healthy, "findings": seen})
        raise typer.Exit(0 if healthy else 1)


def _examine(*, push: bool, only: list[str]) -> Iterable[Finding]:
    if unknown := [name for name in only if name not in NAMES]:
        raise InvalidInputError("--only", [f"no check {name!r}: there are {', '.join(NAMES)}" for name in unknown])
    try:
        settings = load_settings()
    except ConfigurationError as error:
        advice = "correct it: docs/settings.md has all of them"
        return [Finding(check="settings", status=Status.FAILED, message=str(error), advice=advice)]
    return examine(settings, push=push, only=only)


def _shown(findings: Iterable[Finding]) -> Iterable[Finding]:
    for finding in findings:
        console.print(
            f"{_MARKS[finding.status]} {finding.check:<12} {escape(finding.message)}",
            markup=True,
            soft_wrap=True,
            highlight=False,
        )
        if finding.advice:
            console.print(f"                     → {finding.advice}", soft_wrap=True, highlight=False)
        yield finding
