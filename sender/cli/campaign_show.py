"""How campaigns, reports and requests are printed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sender.cli.live import exclusions, render
from sender.cli.output import console, jsonable, print_json
from sender.cli.tables import counted, table
from sender.cli.tables import print_table as print_listing
from sender.planning.preview import Preview
from sender.policy.states import CampaignState
from sender.store.campaigns import CampaignRow
from sender.store.reports import Report


def print_report(report: Report, *, as_json: bool, acknowledged: bool | None = None) -> None:
    """One campaign; after an order to stop also whether the workers have heeded it."""
    if as_json:
        print_json(jsonable(report) | ({} if acknowledged is None else {"acknowledged": acknowledged}))
        return
    console.print(render(report))
    waits = report.held or report.state is CampaignState.PAUSED
    if acknowledged is not None:
        console.print()
        console.print(stopped_text([report], acknowledged), markup=False, highlight=False, soft_wrap=True)
    details = {
        "left out": exclusions(report.excluded),
        "re-tested": report.retested
        and f"{counted(report.retested, 'device')} out of quarantine, as part of the audience",
        "finishes": report.expected_finish
        and not report.finished
        and f"about {report.expected_finish:%Y-%m-%d %H:%M:%S %Z}{', if it goes on now' if waits else ''}",
        "finish by": report.finish_by and f"{report.finish_by:%Y-%m-%d %H:%M:%S %Z}",
        "expiration": report.expiration and f"{report.expiration:%Y-%m-%d %H:%M:%S %Z}",
        "created": f"{report.created_at:%Y-%m-%d %H:%M:%S %Z}",
        "started": report.started_at and f"{report.started_at:%Y-%m-%d %H:%M:%S %Z}",
        "finished": report.finished_at and f"{report.finished_at:%Y-%m-%d %H:%M:%S %Z}",
    }
    console.print()
    for name, text in details.items():
        if text:
            console.print(f"{name:<11} {text}", markup=False, highlight=False, soft_wrap=True)
    if report.rejected or report.failed or report.unknown:
        console.print(f"see also: sender activity --campaign {report.key}", style="dim", markup=False, soft_wrap=True)


def stopped_text(stopped: Sequence[Report], acknowledged: bool) -> str:
    """What campaigns that were ordered to stop have sent, have under way, and have not sent."""
    accepted, in_flight = (sum(getattr(report, name) for report in stopped) for name in ("sent", "in_flight"))
    remaining = sum(report.pending + report.retrying for report in stopped)
    heeded = (
        "no worker issues anything more"
        if acknowledged
        else "not every worker has said yet that it issues nothing more"
    )
    return f"{accepted:,} accepted, {in_flight:,} in flight, {remaining:,} remain: {heeded}"


def print_table(rows: Sequence[CampaignRow], *, as_json: bool) -> None:
    """Many campaigns."""
    if as_json:
        print_json([row_json(row) for row in rows])
        return
    if not rows:
        console.print("no campaigns")
        return
    listing = table("key", "app", "state", "rate", "created", "starts or started", "finished")
    for row in rows:
        start = row.started_at or row.send_at
        listing.add_row(
            row.key,
            row.bundle_id,
            row.state.value,
            "unlimited" if row.rate is None else f"{row.rate:,g}/s",
            f"{row.created_at:%Y-%m-%d %H:%M}",
            f"{start:%Y-%m-%d %H:%M}" if start else "",
            f"{row.finished_at:%Y-%m-%d %H:%M}" if row.finished_at else "",
        )
    print_listing(listing)


def row_json(row: CampaignRow) -> dict[str, Any]:
    """A campaign of the list; its figures are in `show`."""
    names = (
        "key",
        "state",
        "state_reason",
        "push_type",
        "rate",
        "batch_size",
        "delivery",
        "segment",
        "send_at",
        "expires_in",
        "expiration",
        "created_at",
        "started_at",
        "finished_at",
    )
    return {"app": row.bundle_id, **{name: getattr(row, name) for name in names}}


def print_preview(preview: Preview, *, as_json: bool) -> None:
    """One request, exactly."""
    if as_json:
        print_json(preview_json(preview))
    else:
        print_request(preview)


def preview_json(preview: Preview) -> dict[str, Any]:
    """One request as JSON."""
    return {
        "environment": preview.environment,
        "method": "POST",
        "url": preview.url,
        "headers": preview.headers,
        "payload": preview.payload,
        "bytes": preview.size,
        "reachable": preview.reachable,
        "note": preview.note,
    }


def print_request(preview: Preview) -> None:
    """One request as it goes over the wire, the payload made readable."""
    lines = [f"POST {preview.url}", *(f"{name}: {value}" for name, value in preview.headers.items())]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    text = json.dumps(preview.payload, ensure_ascii=False, indent=2)
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{preview.size} bytes, {preview.environment}", style="dim", markup=False, highlight=False)
    if preview.note:
        console.print(f"note: {preview.note}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def segment_text(segment: Mapping[str, Any]) -> str:
    """A segment in one line."""
    return "all devices" if segment == {"all": True} else json.dumps(segment, ensure_ascii=False)
