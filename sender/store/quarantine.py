"""Quarantine: who is in it, who is tried again, and the ways out: a success, a second hit, an operator, age.

(How a device gets in, and what a second hit does, is `store.devices.quarantine`; registering again is
`store.registrations`.) Every statement locks its devices in the order of their ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa

from sender.audience import Segment
from sender.model import Actor, ChangeKind, Environment, PushType
from sender.policy.states import DeviceState
from sender.store.database import Transaction
from sender.store.segments import compile_segment, devices, reachable

#: Devices moved in one step.
STEP = 5_000

#: A device that was quarantined this shortly before a campaign started may have been cut into it: the transaction that
#: quarantined it need not have been over.
_STRADDLE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """A device in quarantine, since when and why. `repr` hides the token."""

    app: str
    token: str = field(repr=False)
    environment: Environment
    reason: str | None
    campaign: str | None  # None: an import said so
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Devices in quarantine: all that are given must hold."""

    device_ids: tuple[int, ...] | None = None
    app_id: int | None = None
    campaign_id: int | None = None
    reason: str | None = None
    until: datetime | None = None  # in it since then or longer: what comes in meanwhile is not meant

    def params(self) -> dict[str, object]:
        """For the statements' conditions."""
        ids = None if self.device_ids is None else list(self.device_ids)
        return {
            "ids": ids,
            "app": self.app_id,
            "campaign": self.campaign_id,
            "reason": self.reason,
            "until": self.until,
        }

    def conditions(self) -> str:
        """The part of WHERE on `devices d`."""
        return " AND ".join(
            ["d.state = 'quarantined'", *(text for name, text in _CONDITIONS.items() if self._has(name))]
        )

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None


_CONDITIONS = {
    "device_ids": "d.id = ANY(%(ids)s::bigint[])",
    "app_id": "d.app_id = %(app)s",
    "campaign_id": "d.state_campaign_id = %(campaign)s",
    "reason": "d.state_reason = %(reason)s",
    "until": "d.state_changed_at <= %(until)s",
}


def listed(transaction: Transaction, which: Which, *, limit: int) -> list[Quarantined]:
    """Devices in quarantine, the longest ago first."""
    statement = f"""
        SELECT a.bundle_id AS app, d.token, d.environment, d.state_reason AS reason, c.key AS campaign,
               d.state_changed_at AS since
        FROM {{s}}.devices d JOIN {{s}}.apps a ON a.id = d.app_id
        LEFT JOIN {{s}}.campaigns c ON c.id = d.state_campaign_id
        WHERE {which.conditions()} ORDER BY d.state_changed_at, d.id LIMIT %(limit)s
    """
    rows = transaction.rows(statement, {**which.params(), "limit": limit})
    return [Quarantined(**{**row, "environment": Environment(row["environment"])}) for row in rows]


def now(transaction: Transaction) -> datetime:
    """The database's clock."""
    (moment,) = transaction.execute("SELECT clock_timestamp()").fetchone() or (None,)
    assert isinstance(moment, datetime)  # noqa: S101 - a SELECT without FROM has a row
    return moment


def count_by_reason(transaction: Transaction, which: Which) -> dict[str, int]:
    """How many devices are in quarantine for which reason, the most frequent first."""
    statement = f"""
        SELECT coalesce(d.state_reason, '') AS reason, count(*) AS n FROM {{s}}.devices d
        WHERE {which.conditions()} GROUP BY 1 ORDER BY n DESC, reason
    """
    return {row["reason"]: row["n"] for row in transaction.rows(statement, which.params())}


def to_retest(
    transaction: Transaction,
    app_id: int,
    segment: Segment,
    push_type: PushType,
    *,
    campaign_id: int,
    limit: int,
    started_at: datetime,
    most: int,
) -> list[int]:
    """At most so many quarantined devices that a campaign may try again, the longest ago first: of its segment, in an
    environment that the app serves, and quarantined by another campaign since before this one started (so that none
    of them is in its batches already)."""
    if most <= 0:
        return []
    statement = (
        sa.select(devices.c.id)
        .where(
            sa.text("devices.state = 'quarantined'"),  # written out: the index is on these rows only
            devices.c.app_id == app_id,
            devices.c.id <= limit,
            devices.c.state_campaign_id.is_not(None),
            devices.c.state_campaign_id != campaign_id,
            devices.c.state_changed_at < started_at - _STRADDLE,
            reachable(push_type, app_id, states=(DeviceState.QUARANTINED.value,)),
            compile_segment(segment, app_id, started_at),
        )
        .order_by(devices.c.state_changed_at, devices.c.id)
        .limit(most)
    )
    return [id for (id,) in transaction.execute(statement)]


_LEAVE = """
WITH picked AS MATERIALIZED (
    SELECT d.id FROM {s}.devices d WHERE <which> LIMIT %(most)s
), held AS MATERIALIZED (
    SELECT d.id, d.state_reason AS reason,
           CASE WHEN %(to)s = 'active' AND d.blocklisted_until > now() THEN 'blocklisted' ELSE %(to)s END AS state
    FROM {s}.devices d JOIN picked p ON p.id = d.id WHERE d.state = 'quarantined'
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET
        state = h.state, state_changed_at = now(), state_campaign_id = %(by)s::bigint,
        state_reason = CASE WHEN %(to)s = 'invalid' THEN h.reason END
    FROM held h WHERE d.id = h.id
    RETURNING d.id, d.app_id, d.user_id, h.state, h.reason
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id)
    SELECT %(kind)s, %(actor)s, app_id, id, user_id, '{"state": "quarantined"}', jsonb_build_object('state', state),
           reason, %(by)s
    FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""


def release(transaction: Transaction, which: Which, *, actor: Actor, most: int = STEP) -> int:
    """Let at most so many devices out again: they are pushable. Returns how many; call again until none is left."""
    return _leave(transaction, which, target=DeviceState.ACTIVE, kind=ChangeKind.RELEASED, actor=actor, most=most)


def release_tested(transaction: Transaction, device_ids: Sequence[int], campaign_id: int) -> int:
    """Release devices whose re-test APNs accepted. Returns how many were in quarantine."""
    if not device_ids:
        return 0
    which = Which(device_ids=tuple(device_ids))
    return _leave(
        transaction,
        which,
        target=DeviceState.ACTIVE,
        kind=ChangeKind.RELEASED,
        actor=Actor.APNS,
        most=len(device_ids),
        campaign_id=campaign_id,
    )


def confirm(transaction: Transaction, which: Which, *, actor: Actor, most: int = STEP) -> int:
    """Confirm that at most so many devices' tokens are invalid. Returns how many; call again until none is left."""
    return _leave(transaction, which, target=DeviceState.INVALID, kind=ChangeKind.INVALIDATED, actor=actor, most=most)


def _leave(
    transaction: Transaction,
    which: Which,
    *,
    target: DeviceState,
    kind: ChangeKind,
    actor: Actor,
    most: int,
    campaign_id: int | None = None,
) -> int:
    values = {**which.params(), "to": target.value, "kind": kind.value, "actor": actor.value}
    row = transaction.execute(
        _LEAVE.replace("<which>", which.conditions()), {**values, "by": campaign_id, "most": most}
    ).fetchone()
    return int(row[0]) if row else 0


#: Only where pushes were accepted since: a credential that never worked must not cost anybody tokens by waiting.
_AGED = """
SELECT d.id FROM {s}.apps a
CROSS JOIN LATERAL (
    SELECT d.id, d.environment, d.state_changed_at FROM {s}.devices d
    WHERE d.app_id = a.id AND d.state = 'quarantined' AND d.state_changed_at < now() - make_interval(days => %(days)s)
      AND EXISTS (
          SELECT FROM {s}.baselines b
          WHERE b.app_id = a.id AND b.environment = d.environment AND b.accepted > 0
            AND b.updated_at > d.state_changed_at)
    ORDER BY d.state_changed_at, d.id LIMIT %(most)s
) d
LIMIT %(most)s
"""


def confirm_aged(transaction: Transaction, *, days: int, most: int = STEP) -> int:
    """Confirm devices invalid that have been in quarantine for so many days, in environments of their app in which
    pushes were accepted since. Returns how many of at most `most`; 0 days: never."""
    if days <= 0:
        return 0
    ids = tuple(id for (id,) in transaction.execute(_AGED, {"days": days, "most": most}))
    return confirm(transaction, Which(device_ids=ids), actor=Actor.SENDER, most=most) if ids else 0
