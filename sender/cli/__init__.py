"""The command line. `main` turns every `SenderError` into one clear line and its exit code: no traceback for a
mistake of the user's."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import structlog
import typer

from sender._version import __version__
from sender.cli import (
    activity,
    apps,
    campaigns,
    changelog,
    demo,
    devices,
    doctor,
    migrate,
    processes,
    push,
    simulate,
    up,
    users,
)
from sender.cli.output import report_error
from sender.errors import SenderError

app = typer.Typer(name="sender", no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
app.add_typer(apps.app, name="apps", help="Apps and their credentials.")
app.add_typer(devices.app, name="devices", help="Devices: import, show, count, export.")
app.add_typer(users.app, name="users", help="The application's users.")
app.add_typer(campaigns.app, name="campaigns", help="Campaigns: create, send, watch.")
activity.register(app)
changelog.register(app)
demo.register(app)
doctor.register(app)
migrate.register(app)
processes.register(app)
push.register(app)
simulate.register(app)
up.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"apns-campaign-sender {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """A queue-driven campaign sender for the Apple Push Notification service."""
    _log_to_stderr()


def _log_to_stderr() -> None:
    """Keep standard output for what a command prints; of the logs show warnings only."""
    structlog.configure(
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )


def main() -> None:
    """The `sender` command."""
    try:
        app()
    except SenderError as error:
        report_error(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
