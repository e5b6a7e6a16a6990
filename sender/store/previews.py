"""One device to show a request for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from sender.audience import Segment
from sender.model import CredentialKind, Environment, PushType
from sender.store.database import Transaction
from sender.store.segments import compile_segment, devices, reachable
from sender.store.tables import User

_users: sa.Table = User.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSample:
    """A device, and whether a campaign would go to it."""

    id: int
    token: str = field(repr=False)
    environment: Environment
    state: str
    in_segment: bool
    reachable: bool


def sample(transaction: Transaction, app_id: int, segment: Segment, push_type: PushType) -> DeviceSample | None:
    """The first device of an audience; None when it is empty."""
    statement = (
        _select(app_id, segment, push_type)
        .where(compile_segment(segment, app_id), reachable(push_type))
        .order_by(devices.c.id)
        .limit(1)
    )
    return _sample(transaction.row(statement))


def sample_of_user(
    transaction: Transaction, app_id: int, user: str, segment: Segment, push_type: PushType
) -> DeviceSample | None:
    """The user's device that is most likely to be pushed to; None when they have none in this app."""
    statement = (
        _select(app_id, segment, push_type)
        .join(_users, _users.c.id == devices.c.user_id)
        .where(devices.c.app_id == app_id, _users.c.external_id == user)
        .order_by(
            sa.desc("reachable"), sa.desc("in_segment"), devices.c.last_seen_at.desc().nulls_last(), devices.c.id.desc()
        )
        .limit(1)
    )
    return _sample(transaction.row(statement))


def credential_of(transaction: Transaction, app_id: int, environment: Environment) -> CredentialKind | None:
    """The kind of credential that an app has for an environment."""
    row = transaction.row(
        "SELECT kind FROM {s}.credentials WHERE app_id = %s AND environment = %s", (app_id, environment.value)
    )
    return CredentialKind(row["kind"]) if row else None


def _select(app_id: int, segment: Segment, push_type: PushType) -> sa.Select[Any]:
    return sa.select(
        devices.c.id,
        devices.c.token,
        devices.c.environment,
        devices.c.state,
        compile_segment(segment, app_id).label("in_segment"),
        reachable(push_type).label("reachable"),
    )


def _sample(row: dict[str, Any] | None) -> DeviceSample | None:
    return None if row is None else DeviceSample(**row | {"environment": Environment(row["environment"])})
