"""Segments as SQL on the devices table, and whom a push can reach. Values always travel as parameters.

A condition is never NULL: what a device does not have makes it false, and its negation true.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from sender.audience import segment as seg
from sender.model import Authorization, PushType
from sender.policy.states import DeviceState, Outcome
from sender.store.database import Transaction
from sender.store.tables import Campaign, Credential, Delivery, Device, User

devices: sa.Table = Device.__table__  # type: ignore[attr-defined]
_credentials: sa.Table = Credential.__table__  # type: ignore[attr-defined]
_users: sa.Table = User.__table__  # type: ignore[attr-defined]
_campaigns: sa.Table = Campaign.__table__  # type: ignore[attr-defined]
_deliveries: sa.Table = Delivery.__table__  # type: ignore[attr-defined]

#: Push types that need the user's leave; the others arrive whatever the user said to notifications.
NEEDS_AUTHORIZATION = frozenset({PushType.ALERT})
#: Blocklisted devices belong to an audience: their deliveries wait for the end of the blocklisting.
_PUSHABLE = (DeviceState.ACTIVE.value, DeviceState.BLOCKLISTED.value)
_SHARES = 1_000_000  # the grain of a percentage
#: How many different numbers `lot` gives.
LOTS = 2**62

#: How long is looked for anybody in an audience, by whoever does not count it.
LOOKED_FOR = "200ms"

#: Why devices of a segment are left out, in the order in which the first that applies counts.
CAUSES = {
    "invalid": "their token is invalid",
    "opted_out": "the user opted out",
    "quarantined": "their token is quarantined",
    "no_credential": "the app has no credential for their environment",
    "denied": "the user denied notifications",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AudienceCount:
    """How many devices a campaign would go to, and how many of its segment are left out for which cause."""

    total: int
    excluded: dict[str, int] = field(default_factory=dict)

    @property
    def segment(self) -> int:
        """All devices of the segment, reachable or not."""
        return self.total + sum(self.excluded.values())


def compile_segment(segment: seg.Segment, app_id: int, now: datetime | None = None) -> sa.ColumnElement[bool]:
    """The condition on `devices` that a segment says, for one app. `now` is what times "ago" count from, the same for
    every part of one cut (None: the database's clock)."""
    return sa.and_(devices.c.app_id == app_id, _condition(segment, now))


def reachable(
    push_type: PushType, app_id: int | None = None, *, states: Sequence[str] = _PUSHABLE
) -> sa.ColumnElement[bool]:
    """The condition on `devices` of those that a push of this type can reach at all.

    With `app_id` the environments that it has credentials for are looked up once, before the devices: the planner takes
    the look-up per device for a rare match, and would then read and sort far more than a cut needs.
    """
    served = _has_credential() if app_id is None else _is_served(app_id)
    conditions = [devices.c.state.in_(states), served]
    if push_type in NEEDS_AUTHORIZATION:
        conditions.append(devices.c.authorization != Authorization.DENIED.value)
    return sa.and_(*conditions)


def count_audience(
    transaction: Transaction, app_id: int, segment: seg.Segment, push_type: PushType, now: datetime | None = None
) -> AudienceCount:
    """Count an audience and its exclusions by cause, in one statement."""
    cause = _cause(push_type, app_id).label("cause")
    statement = (
        sa.select(cause, sa.func.count().label("n")).where(compile_segment(segment, app_id, now)).group_by(sa.text("1"))
    )
    counts: dict[str, int] = {row["cause"]: row["n"] for row in transaction.rows(statement)}
    return AudienceCount(total=counts.get("", 0), excluded={name: counts[name] for name in CAUSES if counts.get(name)})


def is_empty(transaction: Transaction, app_id: int, segment: seg.Segment, push_type: PushType) -> bool:
    """Whether nobody is in an audience now. False, too, when a short look cannot tell: in a huge table, say."""
    anybody = sa.select(sa.literal(1)).where(compile_segment(segment, app_id), reachable(push_type, app_id)).limit(1)
    try:
        with transaction.connection.transaction(force_rollback=True):  # a savepoint, with which the time limit ends
            transaction.execute("SELECT set_config('statement_timeout', %s, true)", (LOOKED_FOR,))
            return transaction.row(anybody) is None
    except psycopg.errors.QueryCanceled:
        return False


def _cause(push_type: PushType, app_id: int) -> sa.ColumnElement[str]:
    states = (DeviceState.INVALID, DeviceState.OPTED_OUT, DeviceState.QUARANTINED)
    whens: list[tuple[sa.ColumnElement[bool], Any]] = [
        (devices.c.state == state.value, sa.literal(state.value)) for state in states
    ]
    whens.append((sa.not_(_is_served(app_id)), sa.literal("no_credential")))
    if push_type in NEEDS_AUTHORIZATION:
        whens.append((devices.c.authorization == Authorization.DENIED.value, sa.literal("denied")))
    return sa.case(*whens, else_=sa.literal(""))


def _is_served(app_id: int) -> sa.ColumnElement[bool]:
    environments = sa.select(_credentials.c.environment).where(_credentials.c.app_id == app_id).scalar_subquery()
    return devices.c.environment == sa.any_(sa.func.array(environments))


def _has_credential() -> sa.ColumnElement[bool]:
    return sa.exists(
        sa.select(sa.literal(1))
        .select_from(_credentials)
        .where(_credentials.c.app_id == devices.c.app_id, _credentials.c.environment == devices.c.environment)
        .correlate(devices)
    )


def _condition(segment: seg.Segment, now: datetime | None) -> sa.ColumnElement[bool]:
    match segment:
        case seg.Everyone():
            return sa.true()
        case seg.And(parts=parts):
            return sa.and_(*(_condition(part, now) for part in parts))
        case seg.Or(parts=parts):
            return sa.or_(*(_condition(part, now) for part in parts))
        case seg.Not(part=part):
            return sa.not_(_condition(part, now))
        case seg.OneOf(attribute=name, values=values):
            return _one_of(name, values)
        case seg.Compare(attribute=name, operator=operator, value=value):
            return _compare(name, operator, value)
        case seg.Contains(attribute=name, value=value):
            return _surely(sa.and_(_kind(name) == "array", _attribute(name).op("@>")(_jsonb([value]))))
        case seg.Field(field=name, values=values):
            return _field(name, values)
        case seg.Span(field=name, after=after, before=before):
            return _span(name, after, before, now)
        case seg.Percentage(percent=percent, seed=seed):
            return _bucket(seed) < round(percent / 100 * _SHARES)
        case seg.NotSent(key=key, or_unknown=or_unknown):
            outcomes = (Outcome.SENT, Outcome.UNKNOWN) if or_unknown else (Outcome.SENT,)
            return sa.not_(_sent_by(key, outcomes))
    raise TypeError(f"not a segment: {type(segment).__name__}")


def _one_of(name: str, values: tuple[seg.Scalar, ...]) -> sa.ColumnElement[bool]:
    some = [value for value in values if value is not None]
    conditions: list[sa.ColumnElement[bool]] = []
    if some:
        texts = sa.literal([json.dumps(value) for value in some], pg.ARRAY(sa.Text))
        conditions.append(_surely(_attribute(name) == sa.any_(sa.cast(texts, pg.ARRAY(pg.JSONB)))))
    if len(some) < len(values):
        conditions.append(sa.func.coalesce(_kind(name), "null") == "null")
    return sa.or_(*conditions)


def _compare(name: str, operator: str, value: str | int | float) -> sa.ColumnElement[bool]:
    if isinstance(value, str):
        left: Any = sa.case((_kind(name) == "string", _text(name)), else_=None).collate("C")
        right: Any = sa.literal(value, sa.Text)
    else:
        # CASE guards the cast: it is only tried on what is a number.
        left = sa.case((_kind(name) == "number", sa.cast(_text(name), sa.Numeric)), else_=None)
        right = sa.cast(sa.literal(repr(value), sa.Text), sa.Numeric)
    return _surely(left.op(operator, is_comparison=True)(right))


def _field(name: str, values: tuple[str, ...]) -> sa.ColumnElement[bool]:
    wanted = sa.any_(sa.literal(list(values), pg.ARRAY(sa.Text)))
    if name == "user":
        # Neither NULL nor hidden in a function: one user's devices are found by the index, not among millions.
        ids = sa.func.array(sa.select(_users.c.id).where(_users.c.external_id == wanted).scalar_subquery())
        return sa.and_(devices.c.user_id.is_not(None), devices.c.user_id == sa.any_(ids))
    locale = sa.func.lower(sa.func.replace(devices.c.locale, "_", "-"))
    column: Any = {
        "locale": locale,
        "language": sa.func.split_part(locale, "-", 1),
        "timezone": devices.c.timezone,
        "environment": devices.c.environment,
    }[name]
    return _surely(column == wanted)


def _span(
    name: str, after: seg.Moment | None, before: seg.Moment | None, now: datetime | None
) -> sa.ColumnElement[bool]:
    column = {"registered": devices.c.registered_at, "last_seen": devices.c.last_seen_at}[name]
    conditions = []
    if after is not None:
        conditions.append(column >= _absolute(after, now))
    if before is not None:
        conditions.append(column < _absolute(before, now))
    return _surely(sa.and_(*conditions))


def _absolute(moment: seg.Moment, now: datetime | None) -> Any:
    if isinstance(moment, datetime):
        return moment
    return (sa.func.now() if now is None else now) - moment


def lot(seed: str) -> sa.ColumnElement[int]:
    """A number from 0 to LOTS − 1, as good as random, that a device always has for the same seed."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big", signed=True)
    hashed = sa.func.hashint8extended(devices.c.id, sa.literal(number, sa.BigInteger))
    return hashed.op("&", return_type=sa.BigInteger())(sa.literal(LOTS - 1, sa.BigInteger))


def _bucket(seed: str) -> sa.ColumnElement[int]:
    """A number from 0 to _SHARES − 1 that a device always has for the same seed."""
    return sa.func.mod(lot(seed), sa.literal(_SHARES, sa.BigInteger))


def _sent_by(key: str, outcomes: Sequence[Outcome]) -> sa.ColumnElement[bool]:
    """Whether the ledger has one of these outcomes for the campaign and the device. The scalar subqueries run once,
    before the scan, so that only the one partition of that campaign is looked at."""
    started_on = sa.select(_campaigns.c.started_on).where(_campaigns.c.key == key).scalar_subquery()
    campaign_id = sa.select(_campaigns.c.id).where(_campaigns.c.key == key).scalar_subquery()
    return sa.exists(
        sa.select(sa.literal(1))
        .select_from(_deliveries)
        .where(
            _deliveries.c.campaign_started_on == started_on,
            _deliveries.c.campaign_id == campaign_id,
            _deliveries.c.device_id == devices.c.id,
            _deliveries.c.outcome.in_([outcome.value for outcome in outcomes]),
        )
        .correlate(devices)
    )


def _attribute(name: str) -> sa.ColumnElement[Any]:
    return devices.c.attributes.op("->", return_type=pg.JSONB())(sa.literal(name, sa.Text))


def _text(name: str) -> sa.ColumnElement[str]:
    return devices.c.attributes.op("->>", return_type=sa.Text())(sa.literal(name, sa.Text))


def _kind(name: str) -> sa.ColumnElement[str]:
    return sa.func.jsonb_typeof(_attribute(name))


def _jsonb(value: Any) -> sa.ColumnElement[Any]:
    return sa.cast(sa.literal(json.dumps(value), sa.Text), pg.JSONB)


def _surely(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
    return sa.func.coalesce(condition, sa.false())
