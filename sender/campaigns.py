"""Campaigns: enqueue, watch, pause, resume, cancel. Needs the database only; the workers do the sending."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sender.audience import Segment
from sender.campaign_plan import DEFAULT, InvalidCampaignError, Plan, Rate, make_plan
from sender.canary import Canary
from sender.errors import ConflictError, NotFoundError, SenderError
from sender.model import CredentialKind, PushType
from sender.payload import AUTO, Payload
from sender.policy.states import CampaignState
from sender.preview import Preview, Rehearsal, make_preview, rehearse
from sender.services import Services
from sender.store import campaigns as store
from sender.store import references, reports, segments
from sender.store.campaigns import CampaignRow, NewCampaign
from sender.store.database import Transaction
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

    def __init__(self, campaigns: Campaigns, row: CampaignRow) -> None:
        self._campaigns = campaigns
        self._row = row

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
        return self._campaigns.report(self.key)

    def wait(self, timeout: float | None = None) -> Report:
        """Wait until it has finished, or is held until a person acts (`report.held`). `timeout` in seconds.

        Raises `WaitTimeoutError` (a `TimeoutError`), and `ConflictError` for a draft, which nothing starts.
        """
        return self._campaigns.wait(self.key, timeout=timeout)

    def pause(self, reason: str | None = None) -> Campaign:
        """Stop sending until `resume`."""
        self._row = self._campaigns.pause(self.key, reason=reason)._row
        return self

    def resume(self) -> Campaign:
        """Go on where it was paused."""
        self._row = self._campaigns.resume(self.key)._row
        return self

    def cancel(self, reason: str | None = None) -> Campaign:
        """End it for good."""
        self._row = self._campaigns.cancel(self.key, reason=reason)._row
        return self


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
        draft: bool = False,
        connection: Any | None = None,
    ) -> Campaign:
        """Write a campaign to an app's devices; workers send it, at once or at `send_at` (aware).

        Idempotent by `key`: the same key and content gives the same campaign, other content a `ConflictError`.
        `rate`: pushes a second, None for no limit. `expires_in`: a timedelta or seconds from the start, 0 for one
        attempt and no storage; 30 days by default. `collapse_id`: derived from the key, None turns it off.
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
        )
        with self._services.database.within(connection) as transaction:
            row = _write(transaction, plan, draft=draft)
        if row.state is CampaignState.SCHEDULED and connection is None:
            self._services.nudge()
        return Campaign(self, row)

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
            app_id = _check(transaction, plan)
            return rehearse(transaction, self._services.settings, plan, app_id)

    def send(self, key: str, *, send_at: datetime | None = None, actor: str = "application") -> Campaign:
        """Release a draft. Raises `TransitionError` when it is none."""
        if send_at is not None and send_at.tzinfo is None:
            raise InvalidCampaignError("campaign", ["send_at: has no time zone: pass an aware datetime"])
        with self._services.database.transaction() as transaction:
            row = store.schedule(transaction, key, actor=actor, send_at=send_at)
        self._services.nudge()
        return Campaign(self, row)

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
        """Campaigns, newest first."""
        wanted = None if state is None else CampaignState(state)
        with self._services.database.transaction() as transaction:
            return store.listed(transaction, bundle_id=app, state=wanted, limit=limit)

    def report(self, key: str) -> Report:
        """How far a campaign has come: figures of one moment, which add up to the audience. Raises `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            report = reports.read(transaction, key)
            if report.started_at is None and report.finished_at is None:
                row = store.load(transaction, key)
                count = segments.count_audience(
                    transaction, row.app_id, Segment.from_json(row.segment), PushType(row.push_type)
                )
                return reports.estimated(report, count)
            return report

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
        """Stop sending until `resume`. Raises `TransitionError`, `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            return Campaign(self, store.pause(transaction, key, actor=actor, reason=reason))

    def resume(self, key: str, *, actor: str = "application") -> Campaign:
        """Go on with exactly those not sent. Raises `TransitionError`, `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            row = store.resume(transaction, key, actor=actor)
        self._services.nudge()
        return Campaign(self, row)

    def cancel(self, key: str, *, reason: str | None = None, actor: str = "application") -> Campaign:
        """End a campaign for good; what was not sent ends as cancelled. Raises `TransitionError`, `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            row = store.cancel(transaction, key, actor=actor, reason=reason)
        self._services.nudge()
        return Campaign(self, row)

    def count(
        self, bundle_id: str, *, audience: Segment | None = None, push_type: PushType | str = PushType.ALERT
    ) -> AudienceCount:
        """How many devices a push would go to now, and how many of the segment are left out for which cause."""
        segment = Segment.all() if audience is None else audience
        with self._services.database.transaction() as transaction:
            app_id = _app_id(transaction, bundle_id)
            _check_references(transaction, segment)
            return segments.count_audience(transaction, app_id, segment, PushType(push_type))

    def preview(self, key: str, *, user: str | None = None) -> Preview:
        """The exact request for one device of a campaign's audience, or of a user. Raises `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            return make_preview(transaction, self._services.settings, store.load(transaction, key), user=user)


def _write(transaction: Transaction, plan: Plan, *, draft: bool) -> CampaignRow:
    app_id = _check(transaction, plan)
    row, new = store.insert(
        transaction,
        NewCampaign(
            app_id=app_id,
            key=plan.key,
            state=CampaignState.DRAFT if draft else CampaignState.SCHEDULED,
            content=plan.content,
            payload=plan.encoded.body,
            push_type=plan.encoded.push_type.value,
            priority=plan.encoded.priority,
            collapse_id=plan.encoded.collapse_id,
            segment=plan.content["audience"],
            rate=plan.rate,
            batch_size=plan.batch_size,
            delivery=plan.delivery,
            canary=plan.canary.to_json() if plan.canary else None,
            expires_in=plan.expires_in,
            send_at=plan.send_at,
            grace=plan.grace,
        ),
    )
    if not new and not draft and row.state is CampaignState.DRAFT:
        return store.schedule(transaction, plan.key, actor="application")
    return row


def _check(transaction: Transaction, plan: Plan) -> int:
    """Check what needs the database; returns the app's id."""
    app_id = _app_id(transaction, plan.bundle_id)
    _check_credentials(transaction, app_id, plan)
    _check_references(transaction, plan.audience, enqueued=plan.key)
    return app_id


def _app_id(transaction: Transaction, bundle_id: str) -> int:
    row = transaction.row("SELECT id FROM {s}.apps WHERE bundle_id = %s", (bundle_id,))
    if row is None:
        raise NotFoundError("app", bundle_id, "add it with `sender apps add`")
    return int(row["id"])


def _check_credentials(transaction: Transaction, app_id: int, plan: Plan) -> None:
    kinds = {row["kind"] for row in transaction.rows("SELECT kind FROM {s}.credentials WHERE app_id = %s", (app_id,))}
    if not kinds:
        fault = f"app {plan.bundle_id!r} has no credential: add one with `sender apps set-credential`"
    elif plan.encoded.push_type is PushType.LOCATION and CredentialKind.KEY.value not in kinds:
        fault = "push type location needs a key credential (.p8): APNs refuses it with a certificate"
    else:
        return
    raise InvalidCampaignError("campaign", [fault])


def _check_references(transaction: Transaction, segment: Segment, *, enqueued: str | None = None) -> None:
    """Check the campaigns that a segment refers to. `enqueued`: the key of the campaign that is written with it; a
    repeat of one that is there asks nothing new of them."""
    if enqueued is not None and segment.campaign_keys() and store.known_keys(transaction, [enqueued]):
        return
    if faults := references.faults(transaction, segment, hold=enqueued is not None):
        raise InvalidCampaignError("audience", faults)
