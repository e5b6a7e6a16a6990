"""What an application says about its devices: register, rotate, unregister, opt out and in, authorization.

Every verb locks its rows, decides with `policy.registration`, writes, and leaves its changelog rows in the same
transaction, which may be the caller's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from sender.model import Actor, ChangeKind, Environment
from sender.policy.registration import is_news, state_after_registration
from sender.policy.states import DeviceState
from sender.registry.tokens import prefix
from sender.store import changelog
from sender.store.changelog import NewChange
from sender.store.database import Transaction


class Keep:
    """The type of `KEEP`: leave what is known as it is."""

    def __repr__(self) -> str:
        return "KEEP"


KEEP: Final = Keep()


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What the app told of one device, checked. None, or KEEP for the owner, leaves what is known as it is."""

    token: str = field(repr=False)
    replaces: str | None = field(default=None, repr=False)
    user_id: int | Keep | None = KEEP
    environment: Environment | None = None
    default_environment: Environment = Environment.PRODUCTION  # of a device not known before
    locale: str | None = None
    timezone: str | None = None
    attributes: dict[str, Any] | None = None  # merged into what is known
    removed: tuple[str, ...] = ()  # attributes to take away
    authorization: str | None = None
    registered_at: datetime | None = None  # None: now
    last_seen_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Registered:
    """What a registration did: `changes` is empty when everything was known already."""

    device_id: int
    created: bool
    state: DeviceState
    changes: tuple[ChangeKind, ...]


_LOCK = """
SELECT id, token, user_id, environment, state, state_changed_at, blocklisted_until, registered_at
FROM {s}.devices WHERE app_id = %(app)s AND token = ANY(%(tokens)s::text[]) ORDER BY id FOR NO KEY UPDATE
"""

_INSERT = """
INSERT INTO {s}.devices (app_id, token, environment, user_id, locale, timezone, attributes, "authorization",
                         registered_at, last_seen_at)
VALUES (%(app)s, %(token)s, %(environment)s, %(user_id)s, %(locale)s, %(timezone)s,
        coalesce(%(attributes)s::jsonb, '{}'), coalesce(%(authorization)s, 'unknown'), %(registered_at)s, %(seen)s)
ON CONFLICT (token, app_id) DO NOTHING RETURNING id
"""

_UPDATE = """
UPDATE {s}.devices SET
    token = %(token)s, user_id = %(user_id)s, environment = %(environment)s,
    locale = coalesce(%(locale)s, locale), timezone = coalesce(%(timezone)s, timezone),
    attributes = (attributes || coalesce(%(attributes)s::jsonb, '{}')) - %(removed)s::text[],
    "authorization" = coalesce(%(authorization)s, "authorization"),
    state_reason = CASE WHEN state = %(state)s THEN state_reason END,
    state_campaign_id = CASE WHEN state = %(state)s THEN state_campaign_id END,
    state_changed_at = CASE WHEN state = %(state)s THEN state_changed_at ELSE now() END,
    state = %(state)s,
    stale_410_campaign_id = CASE WHEN registered_at >= %(registered_at)s THEN stale_410_campaign_id END,
    registered_at = greatest(registered_at, %(registered_at)s),
    last_seen_at = greatest(last_seen_at, %(seen)s)
WHERE id = %(id)s
"""


def register(transaction: Transaction, app_id: int, given: Registration) -> Registered:
    """Add or refresh a device. Of two registrations of one token at once, the second refreshes what the first wrote."""
    tokens = [given.token] if given.replaces is None else [given.token, given.replaces]
    while True:
        now: datetime = transaction.execute("SELECT clock_timestamp()").fetchone()[0]  # type: ignore[index]
        found = {row["token"]: row for row in transaction.rows(_LOCK, {"app": app_id, "tokens": tokens})}
        known = found.get(given.token)
        replaced = found.get(given.replaces) if given.replaces not in (None, given.token) else None
        if known is not None:
            if replaced is not None:
                _retire(transaction, app_id, replaced, given.token)
            return _refresh(transaction, app_id, given, known, now)
        registered = (
            _rotate(transaction, app_id, given, replaced, now) if replaced else _insert(transaction, app_id, given, now)
        )
        if registered is not None:
            return registered


def _insert(transaction: Transaction, app_id: int, given: Registration, now: datetime) -> Registered | None:
    """A device not known before; None when somebody else has just added it."""
    values = _values(given, now)
    values["user_id"] = None if isinstance(given.user_id, Keep) else given.user_id
    values["environment"] = given.environment or given.default_environment
    row = transaction.execute(_INSERT, {**values, "app": app_id}).fetchone()
    if row is None:
        return None
    new = {"state": str(DeviceState.ACTIVE), "environment": str(values["environment"]), "user": values["user_id"]}
    registered = NewChange(
        kind=ChangeKind.REGISTERED,
        actor=Actor.APPLICATION,
        app_id=app_id,
        device_id=row[0],
        user_id=values["user_id"],
        new=new,
    )
    changelog.append(transaction, [registered])
    return Registered(device_id=row[0], created=True, state=DeviceState.ACTIVE, changes=(ChangeKind.REGISTERED,))


def _rotate(
    transaction: Transaction, app_id: int, given: Registration, replaced: dict[str, Any], now: datetime
) -> Registered | None:
    """Give a known device its new token; None when somebody else has just added that token."""
    transaction.execute("SAVEPOINT sender_rotation")
    try:
        registered = _refresh(transaction, app_id, given, replaced, now)
    except psycopg.errors.UniqueViolation:
        transaction.execute("ROLLBACK TO SAVEPOINT sender_rotation")
        return None
    transaction.execute("RELEASE SAVEPOINT sender_rotation")
    return registered


def _refresh(
    transaction: Transaction, app_id: int, given: Registration, known: dict[str, Any], now: datetime
) -> Registered:
    """Bring a known device up to date, and log what changed."""
    values = _values(given, now)
    before = DeviceState(known["state"])
    revives = given.registered_at is None or is_news(
        given.registered_at, known["registered_at"], known["state_changed_at"]
    )
    state = state_after_registration(before, known["blocklisted_until"], now) if revives else before
    now_is = {
        "token": given.token,
        "state": state,
        "user_id": known["user_id"] if isinstance(given.user_id, Keep) else given.user_id,
        "environment": given.environment or Environment(known["environment"]),
    }
    transaction.execute(_UPDATE, {**values, **now_is, "id": known["id"]})
    rows = _differences(app_id, known, now_is)
    changelog.append(transaction, rows)
    kinds = tuple(dict.fromkeys(row.kind for row in rows))
    return Registered(device_id=known["id"], created=False, state=state, changes=kinds)


def _differences(app_id: int, known: dict[str, Any], now_is: dict[str, Any]) -> list[NewChange]:
    """A row for each thing that changed; for a new owner one in each user's changelog."""
    owner = now_is["user_id"]
    row = partial(NewChange, actor=Actor.APPLICATION, app_id=app_id, device_id=known["id"], user_id=owner)
    rows = []
    if known["token"] != now_is["token"]:
        old, new = {"token": prefix(known["token"])}, {"token": prefix(now_is["token"])}
        rows.append(row(kind=ChangeKind.ROTATED, old=old, new=new))
    if known["state"] != now_is["state"]:
        old, new = {"state": known["state"]}, {"state": str(now_is["state"])}
        rows.append(row(kind=ChangeKind.REVIVED, old=old, new=new))
    if known["user_id"] != owner:
        old, new = {"user": known["user_id"]}, {"user": owner}
        whose = [user for user in (known["user_id"], owner) if user is not None]
        rows += [row(kind=ChangeKind.MOVED, user_id=user, old=old, new=new) for user in whose]
    if known["environment"] != now_is["environment"]:
        old, new = {"environment": known["environment"]}, {"environment": str(now_is["environment"])}
        rows.append(row(kind=ChangeKind.ENVIRONMENT_CHANGED, old=old, new=new))
    return rows


def _retire(transaction: Transaction, app_id: int, replaced: dict[str, Any], token: str) -> None:
    """End the row of a token whose replacement has a row of its own already."""
    if replaced["state"] in (DeviceState.INVALID, DeviceState.OPTED_OUT):
        return
    transaction.execute(
        "UPDATE {s}.devices SET state = 'invalid', state_reason = 'rotated', state_changed_at = now(), "
        "state_campaign_id = NULL WHERE id = %s",
        [replaced["id"]],
    )
    old = {"state": replaced["state"], "token": prefix(replaced["token"])}
    new = {"state": str(DeviceState.INVALID), "token": prefix(token)}
    rotated = NewChange(
        kind=ChangeKind.ROTATED,
        actor=Actor.APPLICATION,
        app_id=app_id,
        device_id=replaced["id"],
        user_id=replaced["user_id"],
        old=old,
        new=new,
    )
    changelog.append(transaction, [rotated])


def _values(given: Registration, now: datetime) -> dict[str, Any]:
    """The statements' parameters that need no decision. A time in the future counts as now: clocks differ."""
    return {
        "token": given.token,
        "locale": given.locale,
        "timezone": given.timezone,
        "attributes": None if given.attributes is None else Jsonb(given.attributes),
        "removed": list(given.removed),
        "authorization": given.authorization,
        "registered_at": min(given.registered_at or now, now),
        "seen": min(given.last_seen_at or now, now),
    }
