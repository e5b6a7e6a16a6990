"""The live view of a campaign: progress, pushes a second, time left, outcomes by reason. Also without a terminal, as a
line now and then."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sender.cli.canary import canary_text
from sender.cli.output import console as default_console
from sender.client import Sender
from sender.planning.prospects import in_words
from sender.policy.outcomes import explain
from sender.store.reports import FINAL, Report
from sender.store.segments import CAUSES

_REFRESH = 0.5  # seconds between two looks
_LINE_EVERY = 5.0  # seconds between two lines without a terminal
duration = in_words
_WINDOW = 5.0  # seconds over which the speed is measured
_SLOW = 10.0  # pushes a second, below which that is too short to measure anything
_MOST_REASONS = 12
_COLOURS = {"sent": "green", "rejected": "red", "failed": "red", "unknown": "yellow", "retrying": "yellow"}


@dataclass(slots=True)
class Pace:
    """Pushes a second, measured between reports, by the database's clock."""

    _points: deque[tuple[datetime, int]] = field(default_factory=deque)

    def add(self, report: Report) -> None:
        """Take a report into account."""
        self._points.append((report.now, answered(report)))
        while len(self._points) > 2 and (report.now - self._points[0][0]).total_seconds() > _WINDOW:
            self._points.popleft()

    @property
    def now(self) -> float | None:
        """Pushes a second over the last seconds; None before there are two reports."""
        if len(self._points) < 2:
            return None
        (first, few), (last, many) = self._points[0], self._points[-1]
        seconds = (last - first).total_seconds()
        return (many - few) / seconds if seconds > 0 else None


def watch(sender: Sender, key: str, *, console: Console | None = None, refresh: float = _REFRESH) -> Report:
    """Show a campaign until it has finished or is held; returns its last report. Ctrl-C ends the view only."""
    output = console or default_console
    pace = Pace()
    if not output.is_terminal:
        return _watch_in_lines(sender, key, output, pace)
    with Live(console=output, auto_refresh=False, transient=False) as live:
        while True:
            report = sender.campaigns.report(key)
            pace.add(report)
            live.update(render(report, _speed(report, pace)), refresh=True)
            if report.finished or report.held:
                return report
            time.sleep(refresh)


def _watch_in_lines(sender: Sender, key: str, output: Console, pace: Pace) -> Report:
    told: tuple[object, ...] = ()
    told_at = 0.0
    while True:
        report = sender.campaigns.report(key)
        pace.add(report)
        ended = report.finished or report.held
        figures = (report.state, report.final, report.retrying, report.in_flight)
        if figures != told and (ended or time.monotonic() - told_at >= _LINE_EVERY):
            output.print(one_line(report, _speed(report, pace)), markup=False, highlight=False, soft_wrap=True)
            told, told_at = figures, time.monotonic()
        if ended:
            return report
        time.sleep(_REFRESH)


def _speed(report: Report, pace: Pace) -> float | None:
    """Pushes a second: as watched, but of slow campaigns what the report says, which looks back for longer."""
    slow = report.rate is not None and report.rate < _SLOW
    return report.rate_now if slow and report.rate_now is not None else pace.now


def render(report: Report, speed: float | None = None) -> RenderableType:
    """A report as the live view shows it."""
    parts: list[RenderableType] = [_headline(report), _bar(report), _pace_line(report, speed), Text(), outcomes(report)]
    if canary := canary_text(report):
        parts.append(Text(canary, style="bold"))
    parts += [Text(f"credential {each.credential} {each.in_words()}", style="yellow") for each in report.credentials]
    held = why_held(report)
    if held:
        parts.append(Text(held, style="bold yellow"))
    parts += [Text(f"warning: {warning}", style="yellow") for warning in report.warnings]
    return Group(*parts)


def one_line(report: Report, speed: float | None = None) -> str:
    """A report in one line."""
    figures = [
        f"{name} {getattr(report, name):,}" for name in (*FINAL, "retrying", "in_flight") if getattr(report, name)
    ]
    canary = f"canary {report.canary_state}" if report.canary_state not in (None, "passed") else ""
    pace = pushes(speed) if speed and not report.finished else ""
    resting = [f"credential {each.credential} {each.in_words()}" for each in report.credentials]
    parts = [
        f"{report.key}: {report.state}",
        f"{report.final:,} of {about(report)}",
        canary,
        *figures,
        pace,
        *resting,
    ]
    return ", ".join(part for part in parts if part)


def outcomes(report: Report) -> Table:
    """The outcomes, and the reasons with what they mean."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    for name in (*FINAL, "retrying", "in_flight", "pending"):
        count = getattr(report, name)
        if count or name == "sent":
            table.add_row(Text(name.replace("_", " "), style=_COLOURS.get(name, "")), f"{count:,}", "")
    for reason, count in list(report.by_reason.items())[:_MOST_REASONS]:
        table.add_row(f"  {reason}", f"{count:,}", explain(reason)[0])
    for reason, count in report.retrying_by_reason.items():
        table.add_row(f"  {reason}, waits", f"{count:,}", explain(reason)[0])
    for error, count in report.errors.items():
        table.add_row("  our own error", f"{count:,}", f"in batches: {error}")
    return table


def exclusions(excluded: dict[str, int]) -> str:
    """Who is left out and why, in words; empty when nobody is."""
    return ", ".join(f"{count:,} because {CAUSES.get(cause, cause)}" for cause, count in excluded.items())


def why_held(report: Report) -> str:
    """Why the campaign does not go on, or why it ended, and what to do; empty when there is nothing to say."""
    parts = []
    if report.held and report.state == "paused":
        why = (report.state_reason or "").removesuffix(".")
        parts.append(f"paused by the system: {why}; to go on: sender campaigns resume {report.key}")
    if report.held and report.app_state != "active":
        why = (report.app_state_reason or "by a person").removesuffix(".")
        parts.append(f"app {report.app} is paused: {why}; to go on: sender apps resume {report.app}")
    if not parts and report.state_reason:
        parts.append(f"{report.state}: {report.state_reason}")
    return "\n".join(parts)


def answered(report: Report) -> int:
    """Deliveries that a push was made for."""
    return report.sent + report.rejected + report.unknown + report.retrying


def about(report: Report) -> str:
    """The audience; "about" it until it is cut."""
    return f"about {report.audience:,}" if report.audience_is_estimate else f"{report.audience:,}"


def pushes(speed: float) -> str:
    """A speed in pushes a second."""
    return f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def _headline(report: Report) -> Text:
    style = {"completed": "bold green", "failed": "bold red", "paused": "bold yellow"}.get(report.state, "bold")
    rate = "no rate limit" if report.rate is None else f"at most {report.rate:,.4g}/s"
    if report.app_rate is not None and report.app_rate < (report.rate or math.inf) and not report.finished:
        rate = f"at most {report.app_rate:,.4g}/s, its app's limit"
    if report.over is not None and report.started_at is None:
        rate = f"over {duration(report.over)}"
    return Text.assemble((report.key, "bold"), f"  {report.app}  ", (report.state, style), f"  {rate}")


def _bar(report: Report) -> RenderableType:
    done = report.final
    table = Table.grid(padding=(0, 1), expand=False)
    share = done / report.audience if report.audience else float(report.finished)
    bar = ProgressBar(
        total=max(report.audience, 1),
        completed=done if report.audience else int(report.finished),
        width=50,
        complete_style="green",
        finished_style="green",
    )
    table.add_row(bar, f"{share:6.1%}", f"{done:,} of {about(report)}")
    return table


def _pace_line(report: Report, speed: float | None) -> Text:
    if report.started_at is None and report.finished:
        return Text("never started", style="dim")
    if report.started_at is None:
        when = f"starts {report.send_at:%Y-%m-%d %H:%M %Z}" if report.send_at else "starts as soon as a worker is there"
        return Text("draft: `sender campaigns send` releases it" if report.state == "draft" else when, style="dim")
    seconds = max(((report.finished_at or report.now) - report.started_at).total_seconds(), 0.001)
    average = answered(report) / seconds
    parts = [f"{duration(seconds)}", f"{pushes(average)} on average"]
    if report.state == "running" and not report.held:
        now = speed if speed is not None else report.rate_now
        parts = parts if now is None else [pushes(now), *parts]  # unknown right after a change
        left = report.pending + report.in_flight
        if left and report.expected_finish is not None:
            parts.append(f"about {duration((report.expected_finish - report.now).total_seconds())} left")
        elif left and (speed or report.rate_now):
            parts.append(f"about {duration(left / (speed or report.rate_now or 1.0))} left")
        elif not left and report.retrying:
            parts.append(f"{report.retrying:,} waiting for a retry")
    return Text("  ".join(parts))
