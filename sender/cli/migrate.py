"""`sender migrate`: bring the schema to this version's tables."""

from __future__ import annotations

from typing import Annotated

import typer

from sender.cli.output import print_json


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("migrate")(migrate)


def migrate(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit 1 when the schema is not up to date.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Create or upgrade the tables in SENDER_DATABASE_SCHEMA. Needs no superuser and no extension."""
    from sender.settings import load_settings
    from sender.store import migrate as migrations

    settings = load_settings()
    url, schema = settings.require_database_url(), settings.database_schema
    status = migrations.status(url, schema) if check else migrations.migrate(url, schema)
    if as_json:
        print_json(
            {
                "schema": schema,
                "before": status.current,
                "current": status.current if check else status.head,
                "head": status.head,
                "up_to_date": status.up_to_date or not check,
                "changed": not check and not status.up_to_date,
            }
        )
    elif status.up_to_date:
        print(f"schema {schema}: up to date at {status.head}")
    elif not check:
        print(f"schema {schema}: migrated from {status.current or 'nothing'} to {status.head}")
    elif status.known:
        print(f"schema {schema}: at {status.current or 'nothing'}, needs {status.head}: run `sender migrate`")
    else:
        print(f"schema {schema}: at {status.current}, which a newer version made: upgrade apns-campaign-sender")
    if check and not status.up_to_date:
        raise typer.Exit(1)
