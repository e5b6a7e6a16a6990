"""`sender retention`: how large everything is, what is removed when, and removing it now."""

from __future__ import annotations

from typing import Annotated

import typer

from sender.cli.output import console, print_json
from sender.cli.tables import facts, print_table, table
from sender.policy.retention import Step
from sender.settings import Settings, load_settings
from sender.store import growth
from sender.store.database import Database
from sender.store.growth import Growth, MonthPlan

_DOES = {Step.REMOVE_SENT: "sent rows removed", Step.DROP: "dropped", Step.KEEP: "kept"}


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("retention")(retention)


def retention(
    *,
    run: Annotated[bool, typer.Option("--run", help="Remove now what is due: the control worker does it too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Months of the ledger and the changelog, their sizes, and when what of them is removed."""
    from sender.engine.retention import retain

    settings = load_settings()
    database = Database(
        settings.require_database_url(), schema=settings.database_schema, pool_size=2, name="sender retention"
    )
    try:
        if run:
            for _ in retain(database, settings):
                pass
        with database.transaction() as transaction:
            found = growth.read(transaction, settings)
    finally:
        database.close()
    if as_json:
        print_json({"today": found.today, "keeps": _kept(settings), "months": found.months, "tables": found.tables})
        return
    _print(found, settings)


def _print(found: Growth, settings: Settings) -> None:
    kept = (f"{name} {'for ever' if days is None else f'{days} days'}" for name, days in _kept(settings).items())
    console.print(f"kept: {', '.join(kept)}", highlight=False)
    console.print()
    months = table("table", "month", "#size", "#rows", "next")
    for month in found.months:
        size, rows = size_text(month.bytes), f"{month.rows:,}"
        months.add_row(month.table, f"{month.month:%Y-%m}", size, rows, _next(month, found))
    print_table(months)
    console.print()
    print_table(facts([(name, size_text(size)) for name, size in found.tables.items()]))


def _next(month: MonthPlan, found: Growth) -> str:
    if month.on is None:
        return "kept"
    if month.on > found.today:
        return f"{_DOES[month.next]} on {month.on}"
    if month.held_by is not None:
        return f"due since {month.on}: {month.held_by}"
    copied = "" if month.copied is None else f", {month.copied:.0%} copied"
    return f"{_DOES[month.next]}: due since {month.on}{copied}"


def _kept(settings: Settings) -> dict[str, int | None]:
    return {
        "sent": settings.retain_sent,
        "errors": settings.retain_errors,
        "changelog": settings.retain_changelog,
    }


def size_text(size: int) -> str:
    """Bytes for people."""
    for unit, power in (("GB", 30), ("MB", 20)):
        if size >= 1 << power:
            return f"{size / (1 << power):,.1f} {unit}"
    return f"{size / 1024:,.0f} kB"
