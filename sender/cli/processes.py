"""`sender worker`, `sender beat`, `sender flower`: the thin forms of `celery -A tasks worker|beat|flower`."""

from __future__ import annotations

import os
import secrets
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("worker")(worker)
    app.command("beat")(beat)
    app.command("flower")(flower)


def worker(
    role: Annotated[
        Literal["campaign", "priority", "control", "all"],
        typer.Option("--role", help="Whose queue: run at least one of each role, or one worker of `all`."),
    ] = "campaign",
    concurrency: Annotated[
        int | None,
        typer.Option("--concurrency", "-c", min=1, max=256, help="Batches at the same time; of small ones more."),
    ] = None,
) -> None:
    """Run a worker, as `celery -A tasks worker` with threads, the role's queue and events, without gossip or mingle."""
    from sender.settings import load_settings
    from sender.stack.commands import Role, exec_command, worker_command

    settings = load_settings()
    settings.require_database_url()
    settings.require_broker_url()
    name = f"{role}-{os.getpid()}"  # unique on its host: the process stays the same
    exec_command(worker_command(settings, Role(role), name=name, concurrency=concurrency))


def beat() -> None:
    """Run Celery beat with the sender's schedule, as `celery -A tasks beat`. Two of them do no harm."""
    from sender.settings import load_settings
    from sender.stack.commands import beat_command, exec_command

    settings = load_settings()
    settings.require_database_url()
    settings.require_broker_url()
    exec_command(beat_command(settings))


def flower() -> None:
    """Run Flower on SENDER_FLOWER_ADDRESS and SENDER_FLOWER_PORT, as `celery -A tasks flower`, read only.

    Log in as SENDER_FLOWER_USER with SENDER_FLOWER_PASSWORD; a password is made up and printed when none is set.
    """
    from sender.settings import load_settings
    from sender.stack.commands import exec_command, flower_command
    from sender.stack.flower import check_port

    settings = load_settings()
    settings.require_broker_url()
    check_port(settings.flower_address, settings.flower_port)
    configured = settings.flower_password
    password = configured.get_secret_value() if configured else secrets.token_urlsafe(12)
    command = flower_command(settings, port=settings.flower_port, password=password)
    if configured is None:
        print(f"user {settings.flower_user}  password {password}", flush=True)
    exec_command(command)
