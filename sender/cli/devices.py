"""`sender devices …`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sender.audience import Segment, parse_where
from sender.cli import quarantine, undo
from sender.cli.output import console, error_console, jsonable, print_json
from sender.cli.tables import facts, moment, print_table, table
from sender.client import Sender
from sender.devices import Device
from sender.errors import InvalidInputError
from sender.imports import ImportReport, InactiveAs, Options, Progress, Stage, parse_map, parse_types
from sender.model import Environment
from sender.policy.states import DeviceState
from sender.private_files import open_private
from sender.registry.tokens import prefix

app = typer.Typer(no_args_is_help=True)
quarantine.register(app)
undo.register(app)

BAD_LINES = 3  # exit code of an import that refused lines

App = Annotated[str, typer.Option("--app", metavar="BUNDLE_ID", help="The devices' app.", show_default=False)]
AnyApp = Annotated[str | None, typer.Option("--app", metavar="BUNDLE_ID", help="Of this app only.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="K=V", help="plan=pro, age>=18, locale=fr-FR …; all that are given must hold."),
]
AsJson = Annotated[bool, typer.Option("--json", help="As one JSON document.")]


class Format(StrEnum):
    """What an export is written as."""

    CSV = "csv"
    JSONL = "jsonl"


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="CSV or JSONL, gzipped or not; - is standard input.")],
    *,
    app_id: App,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="THEIRS=OURS,…", help="Column names: registration_id=token; NAME=- drops one."),
    ] = None,
    types: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="NAME:TYPE,…", help="Attributes' types: str, int, float, bool, json."),
    ] = None,
    environment: Annotated[Environment | None, typer.Option(help="Of rows that name none.")] = None,
    inactive_as: Annotated[InactiveAs, typer.Option(help="What rows whose active is false become.")] = (
        InactiveAs.QUARANTINED
    ),
    rejects: Annotated[Path | None, typer.Option(help="Where bad lines go; by default FILE.rejects.csv.")] = None,
    as_json: AsJson = False,
) -> None:
    """Import devices. Columns: token, user, environment, locale, timezone, registered_at, last_seen_at, active, state,
    authorization, attributes (a JSON object); any other column becomes an attribute.

    Importing is not registering: no token is revived and no registration moves, unless the row has a newer one.
    Exits 3 when lines were bad; the good ones have landed.
    """
    options = Options(
        columns=parse_map(map_ or ()),
        types=parse_types(types or ()),
        environment=environment,
        inactive_as=inactive_as,
    )
    try:
        with Sender() as sender, _progress() as progress:
            report = sender.devices.import_file(file, app=app_id, options=options, rejects=rejects, progress=progress)
    except KeyboardInterrupt:
        error_console.print("interrupted: some of it may have landed; the same import again does the rest")
        raise typer.Exit(130) from None
    print_json(report) if as_json else _print_import(report)
    if report.rejected:
        raise typer.Exit(BAD_LINES)


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar on standard error; none when that is no terminal."""
    if not error_console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, console=error_console, transient=True) as bar:
        task = bar.add_task("reading", total=None)
        shown = Stage.READING

        def progress(stage: Stage, done: int, whole: int | None) -> None:
            nonlocal shown
            if stage is not shown:
                bar.reset(task, description=stage.value)
                shown = stage
            bar.update(task, completed=done, total=whole)

        yield progress


def _print_import(report: ImportReport) -> None:
    console.print(
        f"{report.lines:,} lines: {report.added:,} added, {report.updated:,} updated, {report.unchanged:,} unchanged, "
        f"{report.outdated:,} older than what is known, {report.duplicates:,} duplicates, {report.skipped:,} skipped, "
        f"{report.rejected:,} bad",
        highlight=False,
        soft_wrap=True,
    )
    for bad in report.first_bad_lines:
        error_console.print(f"line {bad.line}: {bad.reason}", markup=False, highlight=False, soft_wrap=True)
    if report.rejects is not None:
        error_console.print(f"bad lines are in {report.rejects}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def show(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="A token, or its beginning.")],
    app_id: AnyApp = None,
    as_json: AsJson = False,
) -> None:
    """One device: the beginning of its token is enough."""
    with Sender() as sender:
        device = sender.devices.show(token, app=app_id)
    if as_json:
        print_json(device_json(device))
        return
    shown = {
        name.replace("_", " "): json.dumps(value) if isinstance(value, dict) else str(value)
        for name, value in device_json(device).items()
        if value is not None
    }
    print_table(facts(shown))


@app.command()
def count(
    app_id: AnyApp = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """How many devices are in each state; of all apps when none is named."""
    with Sender() as sender:
        segment = _segment(where)
        names = [each.bundle_id for each in sender.apps.list()] if app_id is None else [app_id]
        counts = dict.fromkeys(DeviceState, 0)
        for name in names:
            for state, number in sender.devices.count(name, segment).items():
                counts[state] += number
    if as_json:
        print_json({"total": sum(counts.values()), **counts})
        return
    rows = table("state", "#devices")
    for state, number in counts.items():
        rows.add_row(state, f"{number:,}")
    rows.add_row("total", f"{sum(counts.values()):,}", style="bold")
    print_table(rows)


@app.command()
def export(
    app_id: App,
    where: Where = None,
    state: Annotated[DeviceState | None, typer.Option(help="In this state only.")] = None,
    format_: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.CSV,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file, readable by its owner only; default: stdout.")
    ] = None,
) -> None:
    """Write devices as CSV or JSONL, tokens whole, in the form that `import` reads."""
    with (
        Sender() as sender,
        sender.devices.export(app_id, _segment(where), state=state) as devices,
        _output(output) as file,
    ):
        written = _write_csv(file, devices) if format_ is Format.CSV else _write_jsonl(file, devices)
    error_console.print(f"{written:,} devices", highlight=False)


@contextmanager
def _output(path: Path | None) -> Iterator[Any]:
    if path is None:
        yield sys.stdout
        return
    try:
        with open_private(path) as file:
            yield file
    except OSError as error:
        raise InvalidInputError(str(path), [f"it cannot be written: {error.strerror}"]) from None


_EXPORTED = (
    "token",
    "user",
    "environment",
    "locale",
    "timezone",
    "registered_at",
    "last_seen_at",
    "state",
    "authorization",
    "attributes",
)


def _write_csv(file: Any, devices: Iterable[Device]) -> int:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_EXPORTED)
    written = 0
    for written, device in enumerate(devices, 1):  # noqa: B007 - the count is returned
        cells = [jsonable(getattr(device, name)) for name in _EXPORTED[:-1]]
        writer.writerow([*cells, json.dumps(device.attributes, ensure_ascii=False) if device.attributes else ""])
    return written


def _write_jsonl(file: Any, devices: Iterable[Device]) -> int:
    written = 0
    for written, device in enumerate(devices, 1):  # noqa: B007 - the count is returned
        record = {name: jsonable(getattr(device, name)) for name in _EXPORTED}
        kept = {name: value for name, value in record.items() if value not in (None, {})}
        file.write(json.dumps(kept, ensure_ascii=False) + "\n")
    return written


def _segment(where: list[str] | None) -> Segment:
    parts = [parse_where(text) for text in where or ()]
    segment = Segment.all() if not parts else parts[0]
    for part in parts[1:]:
        segment &= part
    return segment


def device_json(device: Device) -> dict[str, Any]:
    """A device as `--json` shows it: everything but our own id, and whether it can be pushed to."""
    record: dict[str, Any] = jsonable(device)
    del record["id"]
    return {**record, "pushable": device.pushable}


def device_table(devices: Iterable[Device]) -> Table:
    """Devices, a line each."""
    rows = table("device", "app", "environment", "state", "authorization", "locale", "time zone", "registered (UTC)")
    for device in devices:
        state = device.state + (f" ({device.state_reason})" if device.state_reason else "")
        rows.add_row(
            prefix(device.token),
            device.app,
            device.environment,
            state,
            device.authorization,
            device.locale or "",
            device.timezone or "",
            moment(device.registered_at) or "unknown",
        )
    return rows
