"""What `campaigns send` shows, asks, and waits for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import typer

from sender.cli.campaign_options import read_time
from sender.cli.campaign_show import preview_json, print_report, print_request, segment_text
from sender.cli.canary import sample_text
from sender.cli.live import duration, exclusions
from sender.cli.live import watch as watch_live
from sender.cli.output import console, error_console, print_json, warn
from sender.client import Sender
from sender.errors import SenderError
from sender.planning.preview import Preview
from sender.policy.states import CampaignState
from sender.store.reports import Report
from sender.store.segments import AudienceCount

PAUSED, CANCELLED, FAILED, UNDER_WAY = 4, 5, 6, 7


class NotConfirmedError(SenderError):
    """Raised when the person did not type the audience's number."""


def send_now(sender: Sender, wanted: Mapping[str, Any], *, dry_run: bool, yes: bool, as_json: bool) -> str | None:
    """Rehearse, ask, and enqueue. Returns the campaign's key; None after a dry run."""
    asks = not yes and _is_terminal()
    if dry_run or asks:
        rehearsal = sender.campaigns.rehearse(**wanted)
        plan = rehearsal.plan
        if dry_run and as_json:
            print_json(
                {
                    "key": plan.key,
                    "app": plan.bundle_id,
                    "audience": rehearsal.count.total,
                    "excluded": rehearsal.count.excluded,
                    "rate": plan.rate,
                    "over": plan.over,
                    "seconds": rehearsal.seconds,
                    "warnings": rehearsal.warnings,
                    "send_at": plan.send_at,
                    "canary": plan.canary.to_json() if plan.canary else None,
                    "request": preview_json(rehearsal.preview),
                }
            )
            return None
        _show(
            key=plan.key,
            app=plan.bundle_id,
            segment=plan.audience.to_json(),
            count=rehearsal.count,
            rate=plan.rate,
            send_at=plan.send_at,
            canary=plan.canary.to_json() if plan.canary else None,
            preview=rehearsal.preview,
            over=plan.over,
            warnings=rehearsal.warnings,
        )
        if dry_run:
            console.print("dry run: nothing was written", style="bold")
            return None
        _confirm(rehearsal.count.total)
    campaign = sender.campaigns.enqueue(**wanted)
    if not asks:  # who was asked has read them
        warn(campaign.warnings)
    return campaign.key


def release(sender: Sender, key: str, *, at: str | None, dry_run: bool, yes: bool, as_json: bool) -> str | None:
    """Rehearse, ask, and release a draft. Returns its key; None after a dry run."""
    send_at = read_time(at, "--at")
    asks = not yes and _is_terminal()
    if dry_run or asks:
        row = sender.campaigns.load(key)
        report = sender.campaigns.report(key)
        preview = sender.campaigns.preview(key)
        if dry_run and as_json:
            print_json({"report": report, "request": preview_json(preview)})
            return None
        count = AudienceCount(total=report.audience, excluded=report.excluded)
        _show(
            key=key,
            app=row.bundle_id,
            segment=row.segment,
            count=count,
            rate=row.rate,
            send_at=send_at or row.send_at,
            canary=report.canary,
            preview=preview,
            over=row.over,
            warnings=report.warnings,
        )
        if dry_run:
            console.print("dry run: nothing was written", style="bold")
            return None
        if row.state is CampaignState.DRAFT:
            _confirm(count.total)
    campaign = sender.campaigns.send(key, send_at=send_at, actor="operator")
    if not asks:
        warn(campaign.warnings)
    return campaign.key


def follow(sender: Sender, key: str, *, watch: bool, wait: bool, as_json: bool) -> None:
    """Say what was done, or stay with the campaign until it ends; its end is the exit code then."""
    if not watch and not wait:
        row = sender.campaigns.load(key)
        if as_json:
            print_json(sender.campaigns.report(key))
        else:
            when = f" for {row.send_at:%Y-%m-%d %H:%M:%S %Z}" if row.send_at else ""
            console.print(f"{key} is {row.state}{when}", markup=False, highlight=False, soft_wrap=True)
            console.print(f"next: sender campaigns show {key} --watch", markup=False, highlight=False, soft_wrap=True)
        return
    try:
        report = (
            watch_live(sender, key, console=error_console if as_json else None) if watch else sender.campaigns.wait(key)
        )
    except KeyboardInterrupt:
        error_console.print(f"the campaign goes on: sender campaigns show {key} --watch", markup=False)
        raise typer.Exit(130) from None
    if not watch or as_json:
        print_report(report, as_json=as_json)
    raise typer.Exit(exit_code_of(report))


def exit_code_of(report: Report) -> int:
    """0 completed, 4 paused by the system or with its app, 5 cancelled, 6 failed or missed."""
    if report.held:
        return PAUSED
    return {CampaignState.CANCELLED: CANCELLED, CampaignState.FAILED: FAILED, CampaignState.MISSED: FAILED}.get(
        report.state, 0
    )


def _show(
    *,
    key: str,
    app: str,
    segment: Mapping[str, Any],
    count: AudienceCount,
    rate: float | None,
    send_at: datetime | None,
    canary: Mapping[str, Any] | None,
    preview: Preview,
    over: float | None,
    warnings: Sequence[str],
) -> None:
    seconds = over if over is not None else None if rate is None else count.total / rate
    limit = "unlimited" if rate is None else f"{rate:,g} pushes a second"
    if over is not None:
        limit = f"about {count.total / over:,.4g} pushes a second, to spread it over the time it takes"
    lines = [
        ("campaign", key),
        ("app", app),
        ("segment", segment_text(segment)),
        ("audience", f"{count.total:,} devices"),
        ("left out", exclusions(count.excluded) or "nobody"),
        ("rate", limit),
        ("start", f"{send_at:%Y-%m-%d %H:%M:%S %Z}" if send_at else "now"),
        *([("canary", f"{sample_text(canary)} first{', then it waits' if canary['hold'] else ''}")] if canary else []),
        ("takes", "as long as APNs does" if seconds is None else f"about {duration(seconds)} at that rate"),
    ]
    for name, text in lines:
        console.print(f"{name:<9} {text}", markup=False, highlight=False, soft_wrap=True)
    warn(warnings)
    console.print()
    print_request(preview)
    console.print()


def _confirm(total: int) -> None:
    answer = typer.prompt(f"Type the audience's number ({total}) to send", default="", show_default=False)
    if answer.strip().replace(",", "").replace(" ", "") != str(total):
        raise NotConfirmedError("not confirmed: nothing was sent")


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
