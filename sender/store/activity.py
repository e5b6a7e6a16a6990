"""Reading the message activity log: the ledger's rows, and the retries that wait.

Goes campaign by campaign, newest first, and stops when it has enough: the ledger is found by campaign, so that a
hundred million rows of other campaigns cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sender.policy.states import Outcome
from sender.store import partitions
from sender.store.database import Transaction

#: How many campaigns are looked through when none is named.
MOST_CAMPAIGNS = 1000

#: How many of them one statement asks for a row that is wanted.
ASKED_AT_ONCE = 100

#: Successful deliveries are shown newest first in campaigns of up to so many devices; the ledger has no index by time,
#: and in a larger one finding the newest would read all of them: there they come in the order of the devices.
SORTED_BY_TIME = 200_000

#: What stands for an outcome while a delivery waits for its next attempt.
RETRYING = "retrying"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One delivery. `token` is its beginning only; the whole row is found by campaign and device id."""

    at: datetime | None  # None while it waits
    due_at: datetime | None  # of the next attempt, while it waits
    campaign_id: int
    campaign: str
    app: str
    device_id: int
    token: str | None  # None when the device is gone
    environment: str | None
    user: str | None
    outcome: str  # policy.states.Outcome, or retrying
    status: int | None
    reason: str | None
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which deliveries; None does not narrow."""

    campaign: str | None = None
    app: str | None = None
    reason: str | None = None
    device_ids: Sequence[int] | None = None
    everything: bool = False  # the successful ones too


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """A campaign whose deliveries retention has removed: the successful ones, or (`errors`) all of them."""

    campaign: str
    started_on: date
    at: datetime
    errors: bool


_CAMPAIGNS = """
SELECT c.id, c.started_on, c.cut_devices FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
WHERE c.started_on IS NOT NULL AND (%(campaign)s::text IS NULL OR c.key = %(campaign)s)
  AND (%(app)s::text IS NULL OR a.bundle_id = %(app)s)
ORDER BY c.id DESC LIMIT %(most)s
"""

_REMOVED = """
SELECT c.key, c.started_on, c.sent_removed_at FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
WHERE c.sent_removed_at IS NOT NULL AND (%(campaign)s::text IS NULL OR c.key = %(campaign)s)
  AND (%(app)s::text IS NULL OR a.bundle_id = %(app)s)
ORDER BY c.id DESC LIMIT %(most)s
"""

_WHO = """
       left(v.token, 8) AS token, v.environment, u.external_id AS "user", c.key AS campaign, a.bundle_id AS app,
       c.id AS campaign_id
"""

_FROM = """
JOIN {s}.campaigns c ON c.id = d.campaign_id JOIN {s}.apps a ON a.id = c.app_id
LEFT JOIN {s}.devices v ON v.id = d.device_id LEFT JOIN {s}.users u ON u.id = v.user_id
"""


def read(transaction: Transaction, wanted: Filter, *, limit: int) -> list[Entry]:
    """At most `limit` deliveries, the newest campaign's first; within one those that wait, then the newest."""
    entries: list[Entry] = []
    for campaign_id, started_on, devices in _with_any(transaction, wanted):
        by_time = not wanted.everything or devices <= SORTED_BY_TIME
        for find in (_waiting, _final):
            left = limit - len(entries)
            if left <= 0:
                return entries
            rows = find(transaction, wanted, campaign_id, started_on, limit=left, by_time=by_time)
            entries += [Entry(**row) for row in rows]
    return entries


def _with_any(transaction: Transaction, wanted: Filter) -> Iterator[tuple[int, date, int]]:
    """The campaigns with a row that is wanted, newest first, many asked in one statement: (id, start, devices)."""
    conditions, values = _conditions(wanted)
    final = [*conditions, *_unsuccessful(wanted)]
    # LIMIT keeps PostgreSQL from joining the ledger as a whole, ORDER BY from reading it for the first row that fits.
    by = "d.reason" if not wanted.everything and wanted.device_ids is None else "d.device_id"
    statement = f"""
        SELECT c.id, c.day, c.devices
        FROM unnest(%(ids)s::bigint[], %(days)s::date[], %(sizes)s::bigint[]) WITH ORDINALITY AS c(id, day, devices, n)
        WHERE (SELECT true FROM {{s}}.retries d WHERE d.campaign_id = c.id {_and(conditions)}
               ORDER BY d.device_id LIMIT 1)
           OR (SELECT true FROM {{s}}.deliveries d
               WHERE d.campaign_started_on = c.day AND d.campaign_id = c.id {_and(final)}
               ORDER BY {by} LIMIT 1)
        ORDER BY c.n
    """
    which = {"campaign": wanted.campaign, "app": wanted.app, "most": MOST_CAMPAIGNS}
    campaigns = transaction.execute(_CAMPAIGNS, which).fetchall()
    for at in range(0, len(campaigns), ASKED_AT_ONCE):
        ids, days, sizes = zip(*campaigns[at : at + ASKED_AT_ONCE], strict=True)
        asked = values | {"ids": list(ids), "days": list(days), "sizes": list(sizes)}
        yield from transaction.execute(statement, asked).fetchall()


def removed(transaction: Transaction, wanted: Filter) -> list[Removed]:
    """The campaigns that a filter means of which something was removed, newest first."""
    values = {"campaign": wanted.campaign, "app": wanted.app, "most": MOST_CAMPAIGNS}
    months = {month.first for month in partitions.months(transaction, partitions.LEDGER)}
    return [
        Removed(campaign=key, started_on=day, at=at, errors=partitions.month_of(day)[0] not in months)
        for key, day, at in transaction.execute(_REMOVED, values)
    ]


def devices_of(transaction: Transaction, user: str) -> list[int] | None:
    """The ids of a user's devices; None when there is no such user."""
    found = transaction.row("SELECT id FROM {s}.users WHERE external_id = %s", (user,))
    if found is None:
        return None
    rows = transaction.rows("SELECT id FROM {s}.devices WHERE user_id = %s", (found["id"],))
    return [row["id"] for row in rows]


def _final(
    transaction: Transaction, wanted: Filter, campaign_id: int, started_on: date, *, limit: int, by_time: bool
) -> list[dict[str, Any]]:
    conditions, values = _conditions(wanted)
    conditions += _unsuccessful(wanted)
    order = "d.at DESC, d.device_id" if by_time else "d.device_id"
    found = f"""
        SELECT * FROM {{s}}.deliveries d
        WHERE d.campaign_started_on = %(day)s AND d.campaign_id = %(id)s {_and(conditions)}
        ORDER BY {order} LIMIT %(limit)s
    """
    statement = f"""
        SELECT d.at, NULL::timestamptz AS due_at, d.device_id, d.outcome, d.status, d.reason, d.attempts, {_WHO}
        FROM ({found}) d {_FROM} ORDER BY {order}
    """
    return transaction.rows(statement, values | {"day": started_on, "id": campaign_id, "limit": limit})


def _waiting(
    transaction: Transaction, wanted: Filter, campaign_id: int, started_on: date, *, limit: int, by_time: bool
) -> list[dict[str, Any]]:
    conditions, values = _conditions(wanted)
    statement = f"""
        SELECT NULL::timestamptz AS at, d.due_at, d.device_id, '{RETRYING}' AS outcome, d.status, d.reason, d.attempts,
               {_WHO}
        FROM {{s}}.retries d {_FROM}
        WHERE d.campaign_id = %(id)s {_and(conditions)} ORDER BY d.due_at, d.device_id LIMIT %(limit)s
    """
    return transaction.rows(statement, values | {"id": campaign_id, "limit": limit})


def _conditions(wanted: Filter) -> tuple[list[str], dict[str, Any]]:
    conditions: list[str] = []
    values: dict[str, Any] = {}
    if wanted.reason is not None:
        conditions.append("d.reason = %(reason)s")
        values["reason"] = wanted.reason
    if wanted.device_ids is not None:
        conditions.append("d.device_id = ANY(%(devices)s)")
        values["devices"] = list(wanted.device_ids)
    return conditions, values


def _unsuccessful(wanted: Filter) -> list[str]:
    return [] if wanted.everything else [f"d.outcome <> '{Outcome.SENT.value}'"]


def _and(conditions: list[str]) -> str:
    return "".join(f" AND {condition}" for condition in conditions)
