"""Reading devices: one, some, all of them, and how many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from sender.audience import Segment
from sender.model import Authorization, Environment
from sender.policy.states import DeviceState
from sender.store.database import Transaction
from sender.store.segments import compile_segment
from sender.store.tables import App as AppTable
from sender.store.tables import Device as DeviceTable
from sender.store.tables import User as UserTable

_devices: sa.Table = DeviceTable.__table__  # type: ignore[attr-defined]
_apps: sa.Table = AppTable.__table__  # type: ignore[attr-defined]
_users: sa.Table = UserTable.__table__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device as it is known now. `repr` hides the token."""

    id: int
    app: str
    token: str = field(repr=False)
    environment: Environment
    user: str | None
    state: DeviceState
    state_reason: str | None
    state_changed_at: datetime
    blocklisted_until: datetime | None
    authorization: Authorization
    locale: str | None
    timezone: str | None
    attributes: dict[str, Any]
    registered_at: datetime | None
    last_seen_at: datetime | None
    created_at: datetime

    @property
    def pushable(self) -> bool:
        """Whether an alert may be sent to it: also while it is blocklisted, only later."""
        return (
            self.state in (DeviceState.ACTIVE, DeviceState.BLOCKLISTED)
            and self.authorization is not Authorization.DENIED
        )


_OWN = (
    "id",
    "token",
    "environment",
    "state",
    "state_reason",
    "state_changed_at",
    "blocklisted_until",
    "authorization",
    "locale",
    "timezone",
    "attributes",
    "registered_at",
    "last_seen_at",
    "created_at",
)


def _select(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return (
        sa.select(
            *(_devices.c[name] for name in _OWN),
            _apps.c.bundle_id.label("app"),
            _users.c.external_id.label("user"),
        )
        .select_from(
            _devices.join(_apps, _apps.c.id == _devices.c.app_id).outerjoin(_users, _users.c.id == _devices.c.user_id)
        )
        .where(*conditions)
    )


def by_token(transaction: Transaction, beginning: str, app_id: int | None, *, most: int) -> list[Device]:
    """Devices whose token begins so, in the order of their tokens."""
    # "g" is above every hex digit, and so beginning + "g" above every token with that beginning.
    conditions = [_devices.c.token >= beginning, _devices.c.token < beginning + "g"]
    if app_id is not None:
        conditions.append(_devices.c.app_id == app_id)
    statement = _select(*conditions).order_by(_devices.c.token, _devices.c.app_id).limit(most)
    return [_device(row) for row in transaction.rows(statement)]


def of_user(transaction: Transaction, user_id: int, *, most: int = 1000) -> list[Device]:
    """A user's devices across apps."""
    statement = _select(_devices.c.user_id == user_id).order_by(_apps.c.bundle_id, _devices.c.id).limit(most)
    return [_device(row) for row in transaction.rows(statement)]


def count_by_state(transaction: Transaction, app_id: int, segment: Segment) -> dict[DeviceState, int]:
    """How many of the app's devices in a segment are in each state; every state is there."""
    statement = (
        sa.select(_devices.c.state, sa.func.count().label("n"))
        .where(compile_segment(segment, app_id))
        .group_by(_devices.c.state)
    )
    counts = {row["state"]: row["n"] for row in transaction.rows(statement)}
    return {state: counts.get(state.value, 0) for state in DeviceState}


@contextmanager
def stream(
    transaction: Transaction, app_id: int, segment: Segment, state: DeviceState | None
) -> Iterator[Iterator[Device]]:
    """The app's devices in a segment, in the order in which they became known; memory stays flat."""
    conditions = [compile_segment(segment, app_id)]
    if state is not None:
        conditions.append(_devices.c.state == state.value)
    with transaction.stream(_select(*conditions).order_by(_devices.c.id)) as cursor:
        yield (_device(row) for row in cursor)


def _device(row: dict[str, Any]) -> Device:
    return Device(
        **{
            **row,
            "environment": Environment(row["environment"]),
            "state": DeviceState(row["state"]),
            "authorization": Authorization(row["authorization"]),
        }
    )
