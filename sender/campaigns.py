"""Campaigns: enqueue, watch, pause, resume, cancel. Needs the database only; the workers do the sending."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from sender.arguments import check_arguments, one_of
from sender.audience import Segment
from sender.audience.canary import Canary
from sender.errors import ConflictError, SenderError
from sender.halting import wait_until_halted
from sender.model import PushType
from sender.payload import AUTO, Payload
from sender.planning.change import KEPT, Kept, apply_change, make_change
from sender.planning.enqueueing import app_id_of, check, check_references, write
from sender.planning.plan import DEFAULT, Default, InvalidCampaignError, Plan, Rate, make_plan
from sender.planning.preview import Preview, Rehearsal, make_preview, rehearse
from sender.planning.prospects import foresee, foresee_enqueued
from sender.policy.states import CampaignState
from sender.services import Services
from sender.store import campaigns as store
from sender.store import reports, segments
from sender.store.campaigns import CampaignRow
from sender.store.reports import Report
from sender.store.segments import AudienceCount

#: Seconds between two looks at a campaign that is waited for: at first, and at most.
_POLL_FIRST, _POLL_LONGEST = 0.05, 0.5


class WaitTimeoutError(SenderError, TimeoutError):
    """Raised when a campaign has not finished in the time that was allowed; `report` says how far it is."""

    def __init__(self, report: Report, timeout: float) -> None:
        self.report = report
        super().__init__(
            f"campaign {report.key!r} is {report.state} after {timeout:g} s: {report.final:,} of "
            f"{report.audience:,} devices are final; it goes on, wait again"
        )


class Campaign:
    """A campaign by its key: a handle that looks things up when asked."""

    def __init__(
        self,
        campaigns: Campaigns,
        row: CampaignRow,
        *,
        warnings: Sequence[str] = (),
        acknowledged: bool | None = None,
    ) -> None:
        self._campaigns = campaigns
        self._row = row
        self._warnings = tuple(warnings)
        #: After `pause` and `cancel`: whether the workers have said in time that they issue nothing more of it.
        self.acknowledged = acknowledged

    def __repr__(self) -> str:
        return f"Campaign(key={self.key!r}, state={self.state.value!r})"

    @property
    def key(self) -> str:
        """The key it was enqueued under."""
        return self._row.key

    @property
    def state(self) -> CampaignState:
        """Its state when it was last looked up; see `refresh`."""
        return self._row.state

    @property
    def row(self) -> CampaignRow:
        """Everything of it, as last looked up."""
        return self._row

    def refresh(self) -> Campaign:
        """Look it up again."""
        self._row = self._campaigns.load(self.key)
        return self

    def report(self) -> Report:
        """How far it has come."""
        report = self._campaigns.report(self.key)
        self._warnings = report.warnings
        return report

    def wait(self, timeout: float | None = None) -> Report:
        """Wait until it has finished, or is held until a person acts (`report.held`). `timeout` in seconds.

        Raises `WaitTimeoutError` (a `TimeoutError`), `NotFoundError`, and `ConflictError` for a draft, which nothing
        starts.
        """
        return self._campaigns.wait(self.key, timeout=timeout)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why it will not start, reaches nobody, or cannot finish before it expires, or by its `finish_by`.

        Of the enqueueing, then of the last report.
        """
        return self._warnings

    def pause(self, reason: str | None = None) -> Campaign:
        """Stop sending until `resume`; returns when the workers have stopped, or after a second (`acknowledged`)."""
        return self._become(self._campaigns.pause(self.key, reason=reason))

    def resume(self) -> Campaign:
        """Go on where it was paused."""
        self._row = self._campaigns.resume(self.key)._row
        return self

    def cancel(self, reason: str | None = None) -> Campaign:
        """End it for good."""
        return self._become(self._campaigns.cancel(self.key, reason=reason))

    def change(self, **changes: Any) -> Campaign:
        """Change its rate, `over`, `finish_by` or `expires_in`; see `Campaigns.change`."""
        return self._become(self._campaigns.change(self.key, **changes))

    def _become(self, other: Campaign) -> Campaign:
        self._row, self._warnings, self.acknowledged = other._row, other._warnings, other.acknowledged
        return self


@check_arguments(but=("enqueue", "create_draft", "rehearse"))
class Campaigns:
    """The campaigns of an installation."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def enqueue(
        self,
        bundle_id: str,
        *,
        key: str,
        payload: Payload | Mapping[str, Any],
        audience: Segment | None = None,
        rate: Rate = DEFAULT,
        expires_in: timedelta | float | None = None,
        send_at: datetime | None = None,
        grace: timedelta | float | None = None,
        push_type: PushType | str | None = None,
        priority: int | None = None,
        collapse_id: str | None = AUTO,
        batch_size: int | None = None,
        delivery: str = "at_least_once",
        canary: Canary | None = None,
        over: timedelta | float | None = None,
        finish_by: datetime | None = None,
        exclude_sent: Sequence[str] | str = (),
        draft: bool = False,
        connection: Any | None = None,
    ) -> Campaign:
        """Write a campaign to an app's devices; workers send it, at once or at `send_at` (aware).

        Idempotent by `key`: the same key and content gives the same campaign, other content a `ConflictError`.
        `rate`: pushes a second, None for no limit. `expires_in`: a timedelta or seconds from the start, 0 for one
        attempt and no storage; 30 days by default. `collapse_id`: derived from the key, None turns it off.
        `over`: a timedelta or seconds to spread it over, in the place of a rate. `finish_by` (aware): when it should be
        done; `Campaign.warnings` says when it cannot, nothing enforces it. `exclude_sent`: keys of ended campaigns;
        whom they were sent to is left out, and of an at-most-once campaign also who may have got them.
        `canary`: a `Canary`, the sample that it is sent to first.
        `connection`: a psycopg 3 or SQLAlchemy connection whose transaction this joins.

        Raises `InvalidPayloadError`, `InvalidSegmentError` or `InvalidCampaignError` with all faults, before anything
        is written; `NotFoundError` for an unknown app.
        """
        plan = self._plan(
            bundle_id,
            key=key,
            payload=payload,
            audience=audience,
            rate=rate,
            expires_in=expires_in,
            send_at=send_at,
            grace=grace,
            push_type=push_type,
            priority=priority,
            collapse_id=collapse_id,
            batch_size=batch_size,
            delivery=delivery,
            canary=canary,
            over=over,
            finish_by=finish_by,
            exclude_sent=exclude_sent,
        )
        with self._services.database.within(connection) as transaction:
            row = write(transaction, plan, draft=draft)
            warnings = foresee_enqueued(transaction, row, installation_rate=self._services.settings.rate)
        if row.state is CampaignState.SCHEDULED and connection is None:
            self._services.nudge()
        return Campaign(self, row, warnings=warnings)

    def _plan(
        self,
        bundle_id: str,
        *,
        key: str,
        payload: Payload | Mapping[str, Any],
        audience: Segment | None = None,
        rate: Rate = DEFAULT,
        expires_in: timedelta | float | None = None,
        send_at: datetime | None = None,
        grace: timedelta | float | None = None,
        push_type: PushType | str | None = None,
        priority: int | None = None,
        collapse_id: str | None = AUTO,
        batch_size: int | None = None,
        delivery: str = "at_least_once",
        canary: Canary | None = None,
        over: timedelta | float | None = None,
        finish_by: datetime | None = None,
        exclude_sent: Sequence[str] | str = (),
    ) -> Plan:
        return make_plan(
            self._services.settings,
            bundle_id,
            key=key,
            payload=payload,
            audience=Segment.all() if audience is None else audience,
            rate=rate,
            expires_in=expires_in,
            send_at=send_at,
            grace=grace,
            push_type=push_type,
            priority=priority,
            collapse_id=collapse_id,
            batch_size=batch_size,
            delivery=delivery,
            canary=canary,
            over=over,
            finish_by=finish_by,
            exclude_sent=exclude_sent,
        )

    def create_draft(self, bundle_id: str, *, key: str, payload: Payload | Mapping[str, Any], **rest: Any) -> Campaign:
        """Write a campaign that waits for `send`; takes what `enqueue` takes."""
        return self.enqueue(bundle_id, key=key, payload=payload, draft=True, **rest)

    def rehearse(self, bundle_id: str, *, key: str, payload: Payload | Mapping[str, Any], **rest: Any) -> Rehearsal:
        """What `enqueue` with the same arguments would do now: audience, exclusions, one exact request.

        Writes nothing; raises what `enqueue` raises, a key that is taken excepted.
        """
        plan = self._plan(bundle_id, key=key, payload=payload, **rest)
        with self._services.database.transaction() as transaction:
            app_id = check(transaction, plan)
            return rehearse(transaction, self._services.settings, plan, app_id)

    def send(self, key: str, *, send_at: datetime | None = None, actor: str = "application") -> Campaign:
        """Release a draft, at once or at `send_at` (aware).

        Raises `TransitionError` when it is none, `InvalidCampaignError`, `NotFoundError`.
        """
        if send_at is not None and send_at.tzinfo is None:
            raise InvalidCampaignError("campaign", ["send_at: has no time zone: pass an aware datetime"])
        with self._services.database.transaction() as transaction:
            row = store.schedule(transaction, key, actor=actor, send_at=send_at)
            warnings = foresee_enqueued(transaction, row, installation_rate=self._services.settings.rate)
        self._services.nudge()
        return Campaign(self, row, warnings=warnings)

    def get(self, key: str) -> Campaign:
        """A handle on a campaign. Raises `NotFoundError`."""
        return Campaign(self, self.load(key))

    def load(self, key: str) -> CampaignRow:
        """Everything of a campaign. Raises `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            return store.load(transaction, key)

    def list(
        self, *, app: str | None = None, state: CampaignState | str | None = None, limit: int = 50
    ) -> list[CampaignRow]:
        """Campaigns, newest first. Raises `NotFoundError` for an unknown app."""
        wanted = None if state is None else one_of(CampaignState, "state", state, of="campaigns")
        with self._services.database.transaction() as transaction:
            if app is not None:
                app_id_of(transaction, app)
            return store.listed(transaction, bundle_id=app, state=wanted, limit=limit)

    def report(self, key: str) -> Report:
        """How far a campaign has come: figures of one moment, which add up to the audience. Raises `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            report = reports.read(transaction, key, installation_rate=self._services.settings.rate)
            if report.started_at is None and report.finished_at is None:
                row = store.load(transaction, key)
                count = segments.count_audience(
                    transaction, row.app_id, Segment.from_json(row.segment), PushType(row.push_type)
                )
                report = reports.estimated(report, count)
        return foresee(report, installation_rate=self._services.settings.rate)

    show = report

    def wait(self, key: str, *, timeout: float | None = None) -> Report:
        """Wait until a campaign has finished, or is held until a person acts; see `Campaign.wait`."""
        end = None if timeout is None else time.monotonic() + timeout
        pause = _POLL_FIRST
        while True:
            row = self.load(key)
            if row.state is CampaignState.DRAFT:
                raise ConflictError(f"campaign {key!r} is a draft: send it before waiting for it")
            if row.finished_at is not None or row.held:
                return self.report(key)
            left = pause if end is None else end - time.monotonic()
            if left <= 0:
                raise WaitTimeoutError(self.report(key), timeout or 0)
            time.sleep(min(pause, left))
            pause = min(pause * 1.3, _POLL_LONGEST)

    def pause(self, key: str, *, reason: str | None = None, actor: str = "application") -> Campaign:
        """Stop sending until `resume`. Returns when the workers have noticed, or after a second: `acknowledged` says.

        Raises `TransitionError`, `NotFoundError`.
        """
        with self._services.database.transaction() as transaction:
            row = store.pause(transaction, key, actor=actor, reason=reason)
        return self._halted(row)

    def _halted(self, row: CampaignRow) -> Campaign:
        started = row.started_at is not None
        stopped = not started or wait_until_halted(self._services.database, campaign_id=row.id)
        return Campaign(self, row, acknowledged=stopped)

    def change(
        self,
        key: str,
        *,
        rate: Rate | Literal[Kept.KEPT] = KEPT,
        over: timedelta | float | None = None,
        finish_by: datetime | Literal[Kept.KEPT] | None = KEPT,
        expires_in: timedelta | float | None = None,
    ) -> Campaign:
        """Change the pace or the deadlines of a campaign that has not ended; workers follow within two seconds.

        `rate`: pushes a second, None for no limit. `over`: spread what is left over this time from now on.
        `finish_by`: another time to finish by, None for none. `expires_in`: seconds from its start, or a timedelta;
        after the start it can only be put off. Raises `InvalidCampaignError`, `TransitionError` when it has ended,
        `ConflictError`, `NotFoundError`.
        """
        wanted = rate if not isinstance(rate, Default) else self._services.settings.default_rate
        change = make_change(rate=wanted, over=over, finish_by=finish_by, expires_in=expires_in)
        with self._services.database.transaction() as transaction:
            row = apply_change(transaction, key, change)
        self._services.nudge()
        return Campaign(self, row, warnings=self.report(key).warnings)

    def resume(self, key: str, *, actor: str = "application") -> Campaign:
        """Go on with exactly those not sent. Raises `TransitionError`, `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            row = store.resume(transaction, key, actor=actor)
        self._services.nudge()
        return Campaign(self, row)

    def cancel(self, key: str, *, reason: str | None = None, actor: str = "application") -> Campaign:
        """End a campaign for good; what was not sent ends as cancelled. Returns as `pause` does.

        Raises `TransitionError`, `NotFoundError`.
        """
        with self._services.database.transaction() as transaction:
            row = store.cancel(transaction, key, actor=actor, reason=reason)
        self._services.nudge()
        return self._halted(row)

    def count(
        self, bundle_id: str, *, audience: Segment | None = None, push_type: PushType | str = PushType.ALERT
    ) -> AudienceCount:
        """How many devices a push would go to now, and how many of the segment are left out for which cause.

        Raises `NotFoundError` for an unknown app, `InvalidCampaignError` for campaigns that cannot be excluded.
        """
        segment = Segment.all() if audience is None else audience
        wanted = one_of(PushType, "push_type", push_type, of="count")
        with self._services.database.transaction() as transaction:
            app_id = app_id_of(transaction, bundle_id)
            check_references(transaction, segment)
            return segments.count_audience(transaction, app_id, segment, wanted)

    def preview(self, key: str, *, user: str | int | None = None) -> Preview:
        """The exact request for one device of a campaign's audience, or of a user. Raises `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            row = store.load(transaction, key)
            return make_preview(transaction, self._services.settings, row, user=None if user is None else str(user))
