"""The push changelog: append only, and read as a feed without gaps.

A row's place in the feed is (transaction id, id). A reader sees only transactions below the oldest one that is still
open, so a row that commits late cannot slip in behind a cursor. One open writing transaction, anywhere in the
PostgreSQL cluster, therefore holds the end of the feed back; it never loses rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from sender.errors import InvalidInputError
from sender.model import Actor, Change, ChangeKind
from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChange:
    """A row to append: surrogate ids only. `user_id` is whose changelog it belongs to."""

    kind: ChangeKind
    actor: Actor
    app_id: int | None
    device_id: int | None = None
    user_id: int | None = None
    old: dict[str, Any] | None = None
    new: dict[str, Any] | None = None
    reason: str | None = None
    campaign_id: int | None = None
    apns_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which rows to read: all that are given must hold."""

    app_id: int | None = None
    device_ids: tuple[int, ...] | None = None
    user_id: int | None = None
    campaign_id: int | None = None


_APPEND = """
INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id, apns_id)
SELECT * FROM unnest(%s::text[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[],
                     %s::jsonb[], %s::jsonb[], %s::text[], %s::bigint[], %s::uuid[])
"""


def append(transaction: Transaction, rows: Sequence[NewChange]) -> None:
    """Write the rows in one statement, in this order."""
    if not rows:
        return
    transaction.execute(
        _APPEND,
        [
            [str(row.kind) for row in rows],
            [str(row.actor) for row in rows],
            [row.app_id for row in rows],
            [row.device_id for row in rows],
            [row.user_id for row in rows],
            [None if row.old is None else Jsonb(row.old) for row in rows],
            [None if row.new is None else Jsonb(row.new) for row in rows],
            [row.reason for row in rows],
            [row.campaign_id for row in rows],
            [row.apns_id for row in rows],
        ],
    )


_COLUMNS = """
SELECT CASE WHEN c.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
            THEN c.transaction_id::text || '-' || c.id END AS cursor,
       c.at, c.kind, c.old, c.new, c.reason, c.apns_id, c.actor, a.bundle_id AS app, d.token, d.environment,
       u.external_id AS "user", k.key AS campaign, o.external_id AS old_user, n.external_id AS new_user
FROM picked c
LEFT JOIN {s}.apps a ON a.id = c.app_id
LEFT JOIN {s}.devices d ON d.id = c.device_id
LEFT JOIN {s}.users u ON u.id = c.user_id
LEFT JOIN {s}.campaigns k ON k.id = c.campaign_id
LEFT JOIN {s}.users o ON o.id = (c.old->>'user')::bigint
LEFT JOIN {s}.users n ON n.id = (c.new->>'user')::bigint
"""

_CONDITIONS = {
    "app_id": "c.app_id = %(app_id)s",
    "device_ids": "c.device_id = ANY(%(device_ids)s::bigint[])",
    "user_id": "c.user_id = %(user_id)s",
    "campaign_id": "c.campaign_id = %(campaign_id)s",
}


def read(transaction: Transaction, *, after: str | None, limit: int, only: Filter) -> list[Change]:
    """The next rows of the feed after a cursor, oldest first. Raises `InvalidInputError` for a malformed cursor."""
    transaction_id, row_id = parse_cursor(after)
    conditions = [
        "(c.transaction_id, c.id) > (%(transaction_id)s::xid8, %(row_id)s)",
        "c.transaction_id < pg_snapshot_xmin(pg_current_snapshot())",
        *_filters(only),
    ]
    statement = f"""
        WITH picked AS MATERIALIZED (
            SELECT c.* FROM {{s}}.changelog c WHERE {" AND ".join(conditions)}
            ORDER BY c.transaction_id, c.id LIMIT %(limit)s)
        {_COLUMNS} ORDER BY c.transaction_id, c.id
    """
    params = {**_params(only), "transaction_id": transaction_id, "row_id": row_id, "limit": limit}
    return [_change(row) for row in transaction.rows(statement, params)]


def latest(transaction: Transaction, *, limit: int, only: Filter) -> list[Change]:
    """The newest rows up to this moment, in the order of the feed; those that the feed does not have yet at the end."""
    conditions = _filters(only) or ["true"]
    # What has an index of its own is found by it; else the feed's own is read from its end.
    narrow = only.device_ids is not None or only.user_id is not None or only.campaign_id is not None
    order = "c.id DESC" if narrow else "c.transaction_id DESC, c.id DESC"
    statement = f"""
        WITH picked AS MATERIALIZED (
            SELECT c.* FROM {{s}}.changelog c WHERE {" AND ".join(conditions)}
            ORDER BY {order} LIMIT %(limit)s)
        {_COLUMNS} ORDER BY c.transaction_id, c.id
    """
    return [_change(row) for row in transaction.rows(statement, {**_params(only), "limit": limit})]


def campaign_id(transaction: Transaction, key: str) -> int | None:
    """The id of the campaign of that key, or None."""
    row = transaction.execute("SELECT id FROM {s}.campaigns WHERE key = %s", [key]).fetchone()
    return row[0] if row else None


def parse_cursor(cursor: str | None) -> tuple[str, int]:
    """The two numbers of a cursor; the beginning of the feed for None."""
    if cursor is None:
        return "0", -1
    transaction_id, separator, row_id = cursor.partition("-")
    if not separator or not _is_number(transaction_id) or not _is_number(row_id):
        raise InvalidInputError(
            "changelog cursor", [f"{cursor[:40]!r} is not one: pass the cursor of the last row that you have read"]
        )
    return transaction_id, int(row_id)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18


def _filters(only: Filter) -> list[str]:
    return [condition for name, condition in _CONDITIONS.items() if getattr(only, name) is not None]


def _params(only: Filter) -> dict[str, Any]:
    ids = only.device_ids
    return {
        "app_id": only.app_id,
        "device_ids": None if ids is None else list(ids),
        "user_id": only.user_id,
        "campaign_id": only.campaign_id,
    }


def _change(row: dict[str, Any]) -> Change:
    return Change(
        cursor=row["cursor"],
        at=row["at"],
        kind=ChangeKind(row["kind"]),
        app=row["app"],
        token=row["token"],
        environment=row["environment"],
        user=row["user"],
        old=_named(row["old"], row["old_user"]),
        new=_named(row["new"], row["new_user"]),
        reason=row["reason"],
        campaign=row["campaign"],
        apns_id=row["apns_id"],
        actor=Actor(row["actor"]),
    )


def _named(values: dict[str, Any] | None, user: str | None) -> dict[str, Any] | None:
    """The values with the application's own user id in place of the surrogate."""
    return values if values is None or "user" not in values else {**values, "user": user}
