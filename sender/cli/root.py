"""The commands, and what they share: `--version` and where logs go.

Only the module of the command that is asked for is imported: a command starts in half the time.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

from sender._version import __version__

#: Groups of commands: the name, which is also the module's, and what it is about.
GROUPS: Mapping[str, str] = {
    "apps": "Apps and their credentials.",
    "devices": "Devices: import, show, count, export; quarantine, undo, forget.",
    "users": "The application's users.",
    "campaigns": "Campaigns: create, send, watch.",
}

#: Single commands and the modules that register them.
COMMANDS: Mapping[str, str] = {
    "activity": "activity",
    "changelog": "changelog",
    "demo": "demo",
    "doctor": "doctor",
    "migrate": "migrate",
    "worker": "processes",
    "beat": "processes",
    "flower": "processes",
    "push": "push",
    "retention": "retention",
    "simulate-apns": "simulate",
    "up": "up",
}


def make_app(words: Sequence[str] = ()) -> typer.Typer:
    """The commands that a command line can mean: one module's when its first word names one, else all."""
    made = typer.Typer(name="sender", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
    made.callback()(_root)
    first = words[0] if words else ""
    if first == "--version":  # which ends before a command is looked for
        return made
    one = first in GROUPS or first in COMMANDS
    for name, help_text in GROUPS.items():
        if not one or name == first:
            made.add_typer(_module(name).app, name=name, help=help_text)
    for name in dict.fromkeys(COMMANDS.values()):
        if not one or COMMANDS.get(first) == name:
            _module(name).register(made)
    return made


def _module(name: str) -> Any:
    return import_module(f"sender.cli.{name}")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"apns-campaign-sender {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A queue-driven campaign sender for the Apple Push Notification service."""
    _log_to_stderr()


def _log_to_stderr() -> None:
    """Keep standard output for what a command prints; of the logs show warnings only."""
    import structlog

    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # it tells of each attempt; our error tells of the last
