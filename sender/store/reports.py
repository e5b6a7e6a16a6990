"""How far a campaign has come, counted in one statement, so that the figures are of one moment and add up.

Final outcomes are summed from the batch rows; retrying are the rows of retries; in flight are the devices of claimed
first-send (and re-test) batches that have no outcome yet; pending is the remainder of the audience. Devices in a retry
batch count as retrying until they are final.

The audience is what was cut, once the cut has ended; until then it is the estimate, and never below what is cut. What
a campaign that was cancelled, failed or missed never cut belongs to its audience too, and has its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sender.errors import NotFoundError
from sender.policy.pace import GRANT_SHARE
from sender.policy.states import AppState, CampaignState
from sender.store import apps, breakers, poison
from sender.store.breakers import Breaker
from sender.store.database import Transaction
from sender.store.segments import AudienceCount

#: The figures that add up to the audience.
PARTS = (
    "sent",
    "rejected",
    "retrying",
    "skipped",
    "expired",
    "unknown",
    "cancelled",
    "failed",
    "pending",
    "in_flight",
)
FINAL = ("sent", "rejected", "skipped", "expired", "unknown", "cancelled", "failed")

#: What becomes of the devices that a campaign which ended early never came to.
_END_OF_REST = {
    CampaignState.CANCELLED: ("cancelled", "Cancelled"),
    CampaignState.FAILED: ("failed", "CampaignFailed"),
    CampaignState.MISSED: ("expired", "Expired"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A campaign at one moment: PARTS add up to `audience`."""

    key: str
    app: str
    state: CampaignState
    state_reason: str | None
    state_actor: str | None  # operator, application, system
    app_state: str  # a paused app holds its campaigns
    app_state_reason: str | None
    audience: int
    audience_is_estimate: bool  # until the whole audience is cut
    sent: int
    rejected: int
    retrying: int
    skipped: int
    expired: int
    unknown: int
    cancelled: int
    failed: int
    pending: int
    in_flight: int
    by_reason: dict[str, int] = field(default_factory=dict)  # of the deliveries that are final
    retrying_by_reason: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)  # our own -> batches that wait for it, or failed by it
    excluded: dict[str, int] = field(default_factory=dict)  # cause -> devices of the segment that were left out
    push_type: str
    rate: float | None  # pushes a second; None: unlimited
    delivery: str
    send_at: datetime | None
    expires_in: float  # seconds from the start; 0: one attempt, never stored
    expiration: datetime | None  # of every push; None before the start, and without storage
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    now: datetime  # the moment, by the database's clock
    canary: dict[str, Any] | None = None  # what was asked for, and once known its sample's "size" and "result"
    canary_state: str | None = None  # policy.states.CanaryState; None before the start
    over: float | None = None  # seconds that it was asked to be spread over
    finish_by: datetime | None = None  # its own deadline: warned of, never enforced
    app_rate: float | None = None  # pushes a second over all campaigns of the app; None: unlimited
    rate_now: float | None = None  # answers a second, at its present limits; None while not running, or not yet known
    rate_average: float | None = None  # answers a second since its start, pauses included
    expected_finish: datetime | None = None  # at its rate, or at what was measured; None when neither is known
    warnings: tuple[str, ...] = ()  # why it cannot finish in time
    retested: int = 0  # devices of the audience that were taken from quarantine

    credentials: tuple[Breaker, ...] = ()  # those of its app that rest or are slowed down, while it is not over

    @property
    def final(self) -> int:
        """Devices with their final outcome."""
        return sum(getattr(self, name) for name in FINAL)

    @property
    def finished(self) -> bool:
        """Whether nothing of the campaign is open any more."""
        return self.finished_at is not None

    @property
    def held(self) -> bool:
        """Whether it was paused by the system, or its app is paused: nothing goes on until a person acts."""
        by_system = self.state is CampaignState.PAUSED and self.state_actor == "system"
        return by_system or (self.state is CampaignState.RUNNING and self.app_state != AppState.ACTIVE)


_REPORT = """
SELECT c.key, a.bundle_id AS app, c.state, c.state_reason, c.state_actor,
       a.state AS app_state, a.state_reason AS app_state_reason,
       c.push_type, c.rate, c.delivery, c.send_at, c.expires_in, c.expiration, c.created_at, c.started_at,
       c.finished_at, c.over, c.finish_by, a.rate AS app_rate, w.since, w.shortest,
       clock_timestamp() AS now, c.exclusions AS excluded,
       c.canary - 'below' AS canary, c.canary_state, c.retested, c.audience_estimate, c.cut_devices,
       -- until a canary has passed, only its sample is cut
       c.cut_finished AND coalesce(c.canary_state, 'passed') = 'passed' AS cut_finished,
       c.cut_limit IS NOT NULL AND c.cut_cursor >= c.cut_limit AND coalesce(c.canary_state, 'passed') = 'passed'
           AS cut_whole,
       b.*, large.lately_of_large, r.retrying, r.retrying_by_reason,
       coalesce(reasons.by_reason, '{}'::jsonb) AS by_reason
FROM {s}.campaigns c
JOIN {s}.apps a ON a.id = c.app_id
CROSS JOIN LATERAL (SELECT least(c.rate, a.rate, %(installation)s::float8) AS rate) pace
CROSS JOIN LATERAL (
    SELECT least(greatest(%(window)s, 10 / pace.rate), 12 * %(window)s) AS longest
) measured
CROSS JOIN LATERAL ( -- since when the speed is measured, the fewest seconds that say something of it, and the largest
                     -- batch that is surely sent in one go: without a limit too, since a credential may be slowed down
    SELECT greatest(clock_timestamp() - make_interval(secs => longest), c.started_at,
                    greatest(c.paced_at, a.paced_at) + make_interval(secs => %(heeded)s)) AS since,
           least(longest, greatest(0.1, 1 / pace.rate)) AS shortest,
           greatest(2, 2 * floor(pace.rate * %(share)s)) AS fits
) w
CROSS JOIN LATERAL (
    SELECT coalesce(sum(sent), 0)::bigint AS sent, coalesce(sum(rejected), 0)::bigint AS rejected,
           coalesce(sum(skipped), 0)::bigint AS skipped, coalesce(sum(expired), 0)::bigint AS expired,
           coalesce(sum(unknown), 0)::bigint AS unknown, coalesce(sum(cancelled), 0)::bigint AS cancelled,
           coalesce(sum(failed), 0)::bigint AS failed,
           coalesce(sum(size - sent - rejected - skipped - expired - unknown - cancelled - failed)
                    FILTER (WHERE state = 'claimed' AND kind <> 'retry'), 0)::bigint AS claimed,
           coalesce(sum(sent + rejected + unknown)
                    FILTER (WHERE ended_at > w.since AND (epoch < 2 OR size <= w.fits)), 0)::bigint AS lately
    FROM (
        SELECT finished_at AS ended_at, epoch, size, state, kind, sent, rejected, skipped, expired, unknown, cancelled,
               failed
        FROM {s}.batches WHERE campaign_id = c.id AND c.totals IS NULL
        UNION ALL -- what retention has folded up
        SELECT NULL, 0, 0, 'done', 'first', t.sent, t.rejected, t.skipped, t.expired, t.unknown, t.cancelled, t.failed
        FROM jsonb_to_record(c.totals) AS t(sent bigint, rejected bigint, skipped bigint, expired bigint,
                                            unknown bigint, cancelled bigint, failed bigint)
        WHERE c.totals IS NOT NULL
    ) AS counted
) b
CROSS JOIN LATERAL ( -- of batches that are too large for their rate, and come back again and again with what is left
    SELECT count(*) AS lately_of_large
    FROM {s}.batches b CROSS JOIN LATERAL unnest(b.device_ids) AS i(id) CROSS JOIN LATERAL (
        SELECT true AS final FROM {s}.deliveries l
        WHERE l.campaign_started_on = c.started_on AND l.campaign_id = c.id AND l.device_id = i.id
          AND l.at > w.since AND l.outcome IN ('sent', 'rejected', 'unknown') LIMIT 1
    ) l
    WHERE b.campaign_id = c.id AND c.totals IS NULL AND c.state = 'running' AND b.size > w.fits AND b.epoch > 1
      AND (b.finished_at > w.since
           OR b.id > c.low_batch_id AND b.state <> 'done' AND b.sent + b.rejected + b.unknown > 0)
) large
CROSS JOIN LATERAL (
    SELECT coalesce(sum(n), 0)::bigint AS retrying, coalesce(jsonb_object_agg(reason, n), '{}'::jsonb)
           AS retrying_by_reason
    FROM (SELECT reason, count(*) AS n FROM {s}.retries WHERE campaign_id = c.id GROUP BY reason) AS waiting
) r
CROSS JOIN LATERAL (
    SELECT coalesce(c.totals->'reasons', jsonb_object_agg(reason, n)) AS by_reason
    FROM (SELECT each.key AS reason, sum(each.value::bigint) AS n
          FROM {s}.batches, jsonb_each_text(reasons) AS each
          WHERE campaign_id = c.id AND c.totals IS NULL AND reasons <> '{}'::jsonb GROUP BY 1) AS counted
) reasons
WHERE c.key = %(key)s
"""

#: Seconds over which the speed of a campaign is measured, and more of them at a slow rate.
_WINDOW = 5.0

#: Seconds in which a changed rate is heeded: what is answered within them is of before.
_HEEDED = 1.0


def read(transaction: Transaction, key: str, *, installation_rate: float | None = None) -> Report:
    """The report of a campaign. Raises `NotFoundError`."""
    values = {"key": key, "window": _WINDOW, "heeded": _HEEDED, "share": GRANT_SHARE, "installation": installation_rate}
    row = transaction.row(_REPORT, values)
    if row is None:
        raise NotFoundError("campaign", key, "see `sender campaigns list`")
    report = replace(settle(row), errors=poison.errors(transaction, key))
    return report if report.finished else replace(report, credentials=_credentials(transaction, report.app))


def _credentials(transaction: Transaction, bundle_id: str) -> tuple[Breaker, ...]:
    app = apps.find(transaction, bundle_id)
    identities = [ref.identity for ref in app.credentials] if app else []
    return tuple(found for found in breakers.read(transaction, identities).values() if not found.plain)


def estimated(report: Report, count: AudienceCount) -> Report:
    """The report of a campaign that has not started, with its audience as it would be now."""
    return replace(report, audience=count.total, pending=count.total, excluded=count.excluded)


def settle(row: Mapping[str, Any]) -> Report:
    """Figures that add up, out of what was counted."""
    figures = dict(row)
    state = CampaignState(figures.pop("state"))
    estimate, cut = figures.pop("audience_estimate"), figures.pop("cut_devices")
    finished, whole = figures.pop("cut_finished"), figures.pop("cut_whole")
    claimed = figures.pop("claimed")
    lately = figures.pop("lately") + figures.pop("lately_of_large")
    figures |= _speeds(state, figures, lately=lately, since=figures.pop("since"), shortest=figures.pop("shortest"))
    never_started = figures["started_at"] is None and figures["finished_at"] is not None
    known = whole or never_started or (finished and state not in _END_OF_REST)
    settled = sum(figures[name] for name in FINAL) + figures["retrying"]
    audience = max(cut if known else max(estimate, cut), settled)
    figures["in_flight"] = max(0, min(claimed, audience - settled))
    figures["pending"] = audience - settled - figures["in_flight"]
    if state in _END_OF_REST:
        part, reason = _END_OF_REST[state]
        rest, figures["pending"] = figures["pending"], 0
        figures[part] += rest
        if rest:
            figures["by_reason"] = {**figures["by_reason"], reason: figures["by_reason"].get(reason, 0) + rest}
    figures["by_reason"] = dict(sorted(figures["by_reason"].items(), key=lambda item: -item[1]))
    return Report(state=state, audience=audience, audience_is_estimate=not known, **figures)


def _speeds(
    state: CampaignState, figures: Mapping[str, Any], *, lately: int, since: datetime | None, shortest: float
) -> dict[str, float | None]:
    """How fast the campaign is (`lately` answers `since` then, in `shortest` seconds at least), and was on average."""
    started_at, now = figures["started_at"], figures["now"]
    if started_at is None or since is None:
        return {}
    lasted = max(((figures["finished_at"] or now) - started_at).total_seconds(), 0.1)
    runs = state is CampaignState.RUNNING and figures["finished_at"] is None
    return {
        "rate_now": lately / max((now - since).total_seconds(), shortest) if runs and now > since else None,
        "rate_average": (figures["sent"] + figures["rejected"] + figures["unknown"]) / lasted,
    }


def clock(transaction: Transaction) -> datetime:
    """The time by the database's clock."""
    (now,) = transaction.execute("SELECT clock_timestamp()").fetchone() or (None,)
    assert isinstance(now, datetime)  # noqa: S101
    return now


def most_devices(transaction: Transaction) -> int:
    """More devices than this no campaign can have: the highest id. Costs one look into an index."""
    (most,) = transaction.execute("SELECT coalesce(max(id), 0) FROM {s}.devices").fetchone() or (0,)
    return int(most)
