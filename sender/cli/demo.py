"""`sender demo`: one whole campaign on embedded servers against a simulated APNs, watched live, and what became of
every kind of device."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sender.cli.output import console
from sender.errors import MissingExtraError

if TYPE_CHECKING:
    from sender.client import Sender
    from sender.policy.states import DeviceState
    from sender.rehearsal import Rehearsal
    from sender.store.reports import Report

KEY = "spring-sale-2027"

#: The simulator's kinds of devices: what they are, what APNs says, and what the sender does about it.
KINDS: Mapping[str, tuple[str, str, str]] = {
    "accepted": ("in order", "200", "sent"),
    "unregistered": ("app removed", "410 Unregistered, just now", "rejected; the token becomes invalid"),
    "stale_unregistered": (
        "registered again since",
        "410 Unregistered, a year ago",
        "rejected; the token stays active: it was registered later than APNs's timestamp",
    ),
    "other_environment": (
        "a sandbox token",
        "400 BadDeviceToken",
        "rejected; the token is quarantined, not thrown away",
    ),
    "wrong_topic": (
        "another app's token",
        "400 DeviceTokenNotForTopic",
        "rejected; the token is quarantined, not thrown away",
    ),
    "throttled": (
        "pushed to too often",
        "429 TooManyRequests, then 200",
        "the device rests (blocklisted), then sent",
    ),
    "errors": ("APNs in trouble", "500 or 503, then 200", "waits in the database, then sent"),
}


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("demo")(demo)


def demo(
    devices: Annotated[int, typer.Option(help="Devices to import.", min=100, max=1_000_000)] = 20_000,
    rate: Annotated[float, typer.Option(help="Pushes a second.", min=1, max=10_000_000)] = 2_000.0,
) -> None:
    """Send one whole campaign on embedded servers to a simulated APNs, and report what became of whom."""
    try:
        from sender.rehearsal import Rehearsal
        from sender.stack.signals import ended_in_order
    except ModuleNotFoundError:
        raise MissingExtraError("sender demo", "all") from None
    started = time.monotonic()
    console.print("Starting PostgreSQL, Valkey, Celery workers, beat and a simulated APNs in a temporary directory …")
    with ended_in_order(), Rehearsal() as rehearsal:
        _run(rehearsal, devices, rate)
        console.print("\nStopping everything …")
    console.print(f"Done in {time.monotonic() - started:.0f} s; nothing is left behind.\n")
    _hint()


def _run(rehearsal: Rehearsal, devices: int, rate: float) -> None:
    from sender.cli.live import watch
    from sender.payload import Alert, Payload
    from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID

    sender = rehearsal.sender
    sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=rehearsal.key_file)
    file = rehearsal.write_devices(devices)
    imported = sender.devices.import_file(file, app=BUNDLE_ID)
    before = sender.devices.count(BUNDLE_ID)
    console.print(f"Imported {imported.added:,} devices. The campaign goes out at {rate:,.0f} pushes a second:\n")
    sender.campaigns.enqueue(
        BUNDLE_ID,
        key=KEY,
        payload=Payload(alert=Alert(title="Spring sale", body="20 % off today"), sound="default", badge=1),
        rate=rate,
    )
    report = watch(sender, KEY)
    _report(rehearsal, report, rehearsal.kinds(file))
    _states(before, sender.devices.count(BUNDLE_ID))
    _changes(sender)
    _figures(rehearsal, report, devices)


def _report(rehearsal: Rehearsal, report: Report, kinds: Mapping[str, int]) -> None:
    table = Table(
        title="\nWhat became of each kind of device", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    table.add_column("Devices", justify="right")
    for name in ("Kind", "APNs answered", "What the sender did"):
        table.add_column(name, overflow="fold")
    for kind, (what, answer, done) in KINDS.items():
        table.add_row(f"{kinds.get(kind, 0):,}", what, answer, done)
    console.print(table)
    expected = kinds.get("accepted", 0) + kinds.get("throttled", 0) + kinds.get("errors", 0)
    console.print(
        f"APNs accepted {rehearsal.simulator.counters().delivered:,} pushes, the ledger says {report.sent:,} sent, "
        f"{expected:,} devices could be reached."
    )


def _states(before: Mapping[DeviceState, int], after: Mapping[DeviceState, int]) -> None:
    table = Table(title="\nToken states", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.add_column("State")
    table.add_column("Before", justify="right")
    table.add_column("After", justify="right")
    for state in sorted({*before, *after}):
        if before.get(state, 0) or after.get(state, 0):
            table.add_row(state, f"{before.get(state, 0):,}", f"{after.get(state, 0):,}")
    console.print(table)


def _changes(sender: Sender) -> None:
    table = Table(title="\nFrom the push changelog", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for name in ("When", "Token", "Change", "Reason"):
        table.add_column(name, no_wrap=True)
    shown: dict[str, int] = {}
    for change in sender.changelog.read(campaign=KEY, limit=5_000).changes:
        shown[change.kind] = shown.get(change.kind, 0) + 1
        if shown[change.kind] <= 2:
            table.add_row(f"{change.at:%H:%M:%S}", f"{(change.token or '')[:8]}…", change.kind, change.reason or "")
    console.print(table)


def _figures(rehearsal: Rehearsal, report: Report, devices: int) -> None:
    seconds = rehearsal.simulator.counters().per_second
    full = [count for _, count in sorted(seconds.items())][1:-1]  # whole seconds only
    peak, median = (f"{max(full):,}", f"{statistics.median(full):,.0f}") if full else ("–", "–")
    whole = (report.finished_at - report.started_at) if report.finished_at and report.started_at else None
    console.print(
        f"\nBy the simulator's own clock, the busiest second had {peak} pushes, the median one {median}"
        + (f"; the campaign took {whole.total_seconds():.1f} s for {devices:,} devices." if whole else ".")
    )


def _hint() -> None:
    sender = sys.argv[0] if sys.argv[0].endswith("sender") else "sender"
    console.print("Try next:")
    for command, what in (
        ("demo --rate 50000 --devices 200000", "the same at full speed"),
        ("up", "the stack for yourself, with Flower; its state is kept in .sender/"),
        ("simulate-apns --help", "an APNs that misbehaves as you like, to rehearse on"),
    ):
        console.print(f"  {sender} {command}", style="bold", highlight=False, soft_wrap=True)
        console.print(f"      {what}", highlight=False)
    console.print("and read README.md: eight lines of Python, beat, deployment, every APNs reason.")
