"""What an application or a person says of a device beyond registering it: gone, opted out or in, what is allowed.

One statement each, compare-and-set, with its changelog rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sender.model import Actor, ChangeKind
from sender.policy.states import DeviceState
from sender.store import changelog
from sender.store.changelog import NewChange
from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Which:
    """Devices of an app: one by its token, or all of a user."""

    app_id: int
    token: str | None = field(default=None, repr=False)
    user_id: int | None = None

    def params(self) -> dict[str, object]:
        """For `_WHICH`."""
        return {"app": self.app_id, "token": self.token, "user": self.user_id}


_WHICH = "d.app_id = %(app)s AND d.token = %(token)s"
_WHOSE = "d.app_id = %(app)s AND d.user_id = %(user)s"

_MOVE = """
WITH held AS MATERIALIZED (
    SELECT d.id, d.state AS old_state,
           CASE WHEN %(to)s = 'active' AND d.blocklisted_until > now() THEN 'blocklisted' ELSE %(to)s END AS new_state
    FROM {s}.devices d
    WHERE <which> AND d.state = ANY(%(from)s::text[]) ORDER BY d.id FOR NO KEY UPDATE
), changed AS (
    UPDATE {s}.devices d SET state = h.new_state, state_reason = %(reason)s, state_changed_at = now(),
                             state_campaign_id = NULL
    FROM held h WHERE d.id = h.id
    RETURNING d.id, d.app_id, d.user_id, h.old_state, h.new_state
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason)
    SELECT %(kind)s, %(actor)s, app_id, id, user_id, jsonb_build_object('state', old_state),
           jsonb_build_object('state', new_state), %(reason)s
    FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""


def unregister(transaction: Transaction, which: Which, *, reason: str, actor: Actor) -> int:
    """The app said that the token is gone. An opted-out device stays opted out: it may come back."""
    gone = (DeviceState.ACTIVE, DeviceState.BLOCKLISTED, DeviceState.QUARANTINED)
    return _move(
        transaction,
        which,
        kind=ChangeKind.UNREGISTERED,
        sources=gone,
        target=DeviceState.INVALID,
        reason=reason,
        actor=actor,
    )


def opt_out(transaction: Transaction, which: Which, *, reason: str, actor: Actor) -> int:
    """The user wants no pushes, whatever the token's state is."""
    known = tuple(state for state in DeviceState if state is not DeviceState.OPTED_OUT)
    return _move(
        transaction,
        which,
        kind=ChangeKind.OPTED_OUT,
        sources=known,
        target=DeviceState.OPTED_OUT,
        reason=reason,
        actor=actor,
    )


def opt_in(transaction: Transaction, which: Which, *, reason: str | None, actor: Actor) -> int:
    """The user wants pushes again. A blocklisting that has not ended goes on."""
    return _move(
        transaction,
        which,
        kind=ChangeKind.OPTED_IN,
        sources=(DeviceState.OPTED_OUT,),
        target=DeviceState.ACTIVE,
        reason=reason,
        actor=actor,
    )


def set_authorization(transaction: Transaction, which: Which, authorization: str) -> int:
    """Note what the user allows. It is neither state nor owner, and so no changelog row."""
    return transaction.execute(
        f"""UPDATE {{s}}.devices d SET "authorization" = %(to)s
            WHERE {_condition(which)} AND d."authorization" <> %(to)s""",
        {**which.params(), "to": authorization},
    ).rowcount


def count(transaction: Transaction, which: Which) -> int:
    """How many devices are meant."""
    row = transaction.execute(
        f"SELECT count(*) FROM {{s}}.devices d WHERE {_condition(which)}", which.params()
    ).fetchone()
    return int(row[0]) if row else 0


def log_failed_registration(transaction: Transaction, app_id: int, user_id: int | None, error: str) -> None:
    """The app could not get a token: a row in the user's changelog."""
    failed = NewChange(
        kind=ChangeKind.REGISTRATION_FAILED,
        actor=Actor.APPLICATION,
        app_id=app_id,
        user_id=user_id,
        reason=error,
    )
    changelog.append(transaction, [failed])


def _condition(which: Which) -> str:
    return _WHOSE if which.token is None else _WHICH


def _move(
    transaction: Transaction,
    which: Which,
    *,
    kind: ChangeKind,
    sources: tuple[DeviceState, ...],
    target: DeviceState,
    reason: str | None,
    actor: Actor,
) -> int:
    row = transaction.execute(
        _MOVE.replace("<which>", _condition(which)),
        {
            **which.params(),
            "kind": kind.value,
            "actor": actor.value,
            "from": [state.value for state in sources],
            "to": target.value,
            "reason": reason,
        },
    ).fetchone()
    return int(row[0]) if row else 0
