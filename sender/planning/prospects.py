"""What is to be expected of a campaign: when it finishes at its rate, and whether that is too late. Only said, never
enforced: a slow rate is neither sped up nor cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from sender.audience import Segment
from sender.model import PushType
from sender.policy.pace import expected_seconds
from sender.policy.states import CAMPAIGN_MOVES, CampaignState
from sender.store import reports
from sender.store.campaigns import CampaignRow
from sender.store.database import Transaction
from sender.store.reports import Report
from sender.store.segments import count_audience, is_empty

#: Seconds that a campaign must have run for its measured speed to say something of what is to come.
MEASURABLE_AFTER = 10.0

#: Seconds that may be missing without a word about it.
UNSAID = 1.0

#: The most seconds for which a time can be told.
FOREVER = 100 * 365 * 86_400.0


def foresee(report: Report, *, installation_rate: float | None = None) -> Report:
    """The report with its expected finish, and with warnings where that is too late. Limits in pushes a second."""
    if report.finished or not CAMPAIGN_MOVES[report.state]:
        return report
    if report.started_at is None and not report.audience:
        return replace(report, warnings=nobody(report.key))
    left = report.pending + report.in_flight + report.retrying
    limit = tightest(report.rate, report.app_rate, installation_rate)
    start, measured = report.now, None
    if report.started_at is None:
        start = max(report.send_at or report.now, report.now)
    elif report.state is CampaignState.RUNNING and (report.now - report.started_at).total_seconds() > MEASURABLE_AFTER:
        measured = report.rate_now
    seconds = expected_seconds(left, limit=limit, measured=measured)
    if report.over is not None and report.started_at is None:
        seconds = max(report.over, seconds or 0.0)
    if seconds is None:
        return report
    expiration = report.expiration
    if expiration is None and report.started_at is None and report.expires_in > 0:
        expiration = start + timedelta(seconds=report.expires_in)
    finish = start + timedelta(seconds=min(seconds, FOREVER))
    warnings = too_late(
        left, start=start, finish=finish, expiration=expiration, finish_by=report.finish_by, key=report.key
    )
    return replace(report, expected_finish=finish, warnings=tuple(warnings))


def tightest(*rates: float | None) -> float | None:
    """The lowest of the limits that there are."""
    return min((rate for rate in rates if rate is not None), default=None)


def too_late(
    left: int,
    *,
    start: datetime,
    finish: datetime,
    expiration: datetime | None,
    finish_by: datetime | None,
    key: str,
) -> Sequence[str]:
    """What there is to say when `left` pushes that go from `start` to `finish` meet these deadlines."""
    said = []
    whole = (finish - start).total_seconds()
    if expiration is not None and (finish - expiration).total_seconds() > UNSAID:
        missed = round(left * min(1.0, (finish - expiration).total_seconds() / max(whole, 1e-9)))
        said.append(
            f"it cannot finish before it expires: {left:,} devices take about {in_words(whole)} at its rate, and it "
            f"expires in {in_words((expiration - start).total_seconds())}; about {missed:,} of them will expire "
            f"unsent. Raise its rate, or let it expire later (sender campaigns set {key} --rate … or --expires-in …)"
        )
    if finish_by is not None and (finish - finish_by).total_seconds() > UNSAID:
        said.append(
            f"it cannot finish by {finish_by:%Y-%m-%d %H:%M:%S %Z}: {left:,} devices take about {in_words(whole)} at "
            f"its rate, {in_words((finish - finish_by).total_seconds())} too long; it goes on after that all the same. "
            f"Raise its rate, or give it more time (sender campaigns set {key} --rate … or --finish-by …)"
        )
    return said


def start_missed(send_at: datetime | None, grace: float, *, now: datetime) -> Sequence[str]:
    """What there is to say of a start that is past by more than its grace, in seconds: the tick will miss it."""
    if send_at is None or (now - send_at).total_seconds() <= grace:
        return ()
    return [
        f"it will not start: its time, {send_at:%Y-%m-%d %H:%M:%S %Z}, is past by more than its grace "
        f"({in_words(grace)}). Nothing is sent; enqueue it under another key, for a later time or with a longer grace"
    ]


def nobody(key: str) -> tuple[str, ...]:
    """What there is to say of a campaign whose audience is empty before it starts."""
    return (
        "its audience is empty: no device of its app is in its segment and can be reached now, and if that stays so it "
        f"ends without a push; `sender campaigns show {key}` says who is left out, and why",
    )


def foresee_enqueued(
    transaction: Transaction, campaign: CampaignRow, *, installation_rate: float | None
) -> Sequence[str]:
    """The warnings of a campaign that has not started.

    Its audience is counted only where its size can matter; whether it has anybody is looked at for a moment.
    """
    if campaign.state in (CampaignState.SCHEDULED, CampaignState.MISSED) and campaign.send_at:
        missed = start_missed(campaign.send_at, campaign.grace, now=reports.clock(transaction))
        if missed:
            return missed
    if campaign.started_at is not None or not CAMPAIGN_MOVES[campaign.state]:
        return ()
    segment, push_type = Segment.from_json(campaign.segment), PushType(campaign.push_type)
    if is_empty(transaction, campaign.app_id, segment, push_type):
        return nobody(campaign.key)
    limit = tightest(campaign.rate, campaign.app_rate, installation_rate)
    if limit is None and campaign.over is None:
        return ()
    now = reports.clock(transaction)
    start = max(campaign.send_at or now, now)
    ends = [start + timedelta(seconds=campaign.expires_in)] if campaign.expires_in > 0 else []
    ends += [campaign.finish_by] if campaign.finish_by else []
    if not ends:
        return ()
    room = (min(ends) - start).total_seconds()
    most = reports.most_devices(transaction) / limit if limit else 0.0
    if max(most, campaign.over or 0.0) <= room:
        return ()
    left = count_audience(transaction, campaign.app_id, segment, push_type).total
    seconds = max(left / limit if limit else 0.0, campaign.over or 0.0)
    return too_late(
        left,
        start=start,
        finish=start + timedelta(seconds=min(seconds, FOREVER)),
        expiration=ends[0] if campaign.expires_in > 0 else None,
        finish_by=campaign.finish_by,
        key=campaign.key,
    )


def in_words(seconds: float) -> str:
    """Seconds for people: 45 s, 3:20, 2:05:00, 3 days."""
    if seconds < 100:
        return f"{max(seconds, 0):.0f} s"
    if seconds >= 3 * 86_400:
        return f"{seconds / 86_400:,.0f} days"
    return str(timedelta(seconds=round(seconds))).removeprefix("0:")
