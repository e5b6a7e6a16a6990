"""The message activity log: what became of single deliveries, what it means and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sender.apns_ids import delivery_apns_id
from sender.arguments import check_arguments
from sender.errors import InvalidInputError, NotFoundError
from sender.policy.outcomes import SENT, explain
from sender.services import Services
from sender.store import activity as store
from sender.store import apps, campaigns
from sender.store.activity import Entry, Filter, Removed

LARGEST_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One delivery: what happened, what it means, what to do. `token` is its beginning only."""

    at: datetime | None  # None while it waits for its next attempt
    due_at: datetime | None  # of that attempt
    campaign: str
    app: str
    user: str | None
    token: str | None
    environment: str | None
    outcome: str  # sent, rejected, skipped, expired, unknown, cancelled, failed, retrying
    status: int | None  # HTTP status of the last answer
    reason: str | None
    attempts: int
    apns_id: str
    meaning: str
    advice: str


@check_arguments()
class Activity:
    """Reads the log."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def read(
        self,
        *,
        campaign: str | None = None,
        app: str | None = None,
        reason: str | None = None,
        user: str | int | None = None,
        everything: bool = False,
        limit: int = 100,
    ) -> list[Line]:
        """Deliveries that did not succeed, the newest campaign's first; `everything`: those that did too.

        Raises `NotFoundError` for an unknown campaign, app or user.
        """
        if not 1 <= limit <= LARGEST_LIMIT:
            raise InvalidInputError("activity", [f"limit: must be from 1 to {LARGEST_LIMIT:,}"])
        with self._services.database.transaction() as transaction:
            if campaign is not None:
                campaigns.load(transaction, campaign)
            if app is not None and apps.find(transaction, app) is None:
                raise NotFoundError("app", app, "see `sender apps list`")
            devices = None if user is None else store.devices_of(transaction, str(user))
            if user is not None and devices is None:
                raise NotFoundError("user", str(user), "no device was registered for them")
            wanted = Filter(campaign=campaign, app=app, reason=reason, device_ids=devices, everything=everything)
            return [_line(entry) for entry in store.read(transaction, wanted, limit=limit)]

    def removed(self, *, campaign: str | None = None, app: str | None = None) -> list[Removed]:
        """The campaigns whose deliveries the log does not have any more, newest first: see SENDER_RETAIN_SENT and
        SENDER_RETAIN_ERRORS."""
        with self._services.database.transaction() as transaction:
            return store.removed(transaction, Filter(campaign=campaign, app=app))


def _line(entry: Entry) -> Line:
    meaning, advice = (SENT.meaning, SENT.advice) if entry.reason is None else explain(entry.reason)
    return Line(
        at=entry.at,
        due_at=entry.due_at,
        campaign=entry.campaign,
        app=entry.app,
        user=entry.user,
        token=None if entry.token is None else f"{entry.token}…",
        environment=entry.environment,
        outcome=entry.outcome,
        status=entry.status,
        reason=entry.reason,
        attempts=entry.attempts,
        apns_id=delivery_apns_id(entry.campaign_id, entry.device_id),
        meaning=meaning,
        advice=advice,
    )
