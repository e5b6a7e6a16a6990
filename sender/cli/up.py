"""`sender up`: the whole stack in the foreground."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("up")(up)


def up(
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", min=1, max=256, help="Campaign workers. Default: one a core.")
    ] = None,
    flower: Annotated[bool, typer.Option("--flower/--no-flower", help="Run Flower, on SENDER_FLOWER_PORT.")] = True,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", help="State of the embedded servers. Default: SENDER_DATA_DIR.")
    ] = None,
    until_stdin_ends: Annotated[
        bool,
        typer.Option("--until-stdin-ends", hidden=True, help="Stop, too, when whoever holds standard input is gone."),
    ] = False,
) -> None:
    """Run everything in the foreground: servers, migrations, workers, beat and Flower. Prints `ready` when all answer.

    PostgreSQL and Redis are those of SENDER_DATABASE_URL and SENDER_BROKER_URL; for one that is not set an embedded
    server runs in the data directory. Ctrl-C or SIGTERM drains and stops everything; a second one ends it at once.
    """
    from sender.errors import MissingExtraError
    from sender.settings import read_settings

    settings = read_settings(**({"data_dir": data_dir} if data_dir else {}))
    try:
        import psutil  # noqa: F401 - in both extras that this needs
    except ImportError:
        raise MissingExtraError("sender up", "all") from None
    from sender.stack.signals import stop_with_starter
    from sender.stack.up import Plan, run_stack

    if until_stdin_ends:
        stop_with_starter()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    run_stack(settings, Plan(workers=workers or cores or 1, flower=flower), _say)


def _say(line: str) -> None:
    """One line at once, whoever reads: what listens for `ready` may have closed its end since."""
    with contextlib.suppress(OSError):
        print(line, flush=True)
