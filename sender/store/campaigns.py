"""Campaign rows: write one once, load it, and the moves that people ask for, each a compare-and-set.

(The moves of the system, start, miss, complete, fail, are in `store.lifecycle`.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from sender.errors import ConflictError, NotFoundError, TransitionError
from sender.policy.states import CAMPAIGN_MOVES, AppState, CampaignState, sources
from sender.store import trials
from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class NewCampaign:
    """A campaign that is to be written."""

    app_id: int
    key: str
    state: CampaignState  # draft or scheduled
    content: Mapping[str, Any]  # what was asked for: compared by meaning on a repeat of the key
    payload: bytes
    push_type: str
    priority: int
    collapse_id: str | None
    segment: Mapping[str, Any]
    rate: float | None
    batch_size: int
    delivery: str
    expires_in: float
    send_at: datetime | None
    grace: float
    canary: Mapping[str, Any] | None = None  # sender.audience.canary.Canary
    over: float | None = None
    finish_by: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignRow:
    """A campaign as it stands. Times are aware; `rate` in pushes a second, None without limit."""

    id: int
    app_id: int
    bundle_id: str
    app_state: str  # a paused app holds its campaigns
    app_state_reason: str | None
    key: str
    state: CampaignState
    state_reason: str | None
    state_actor: str | None
    epoch: int
    content: dict[str, Any]
    payload: bytes
    push_type: str
    priority: int
    collapse_id: str | None
    segment: dict[str, Any]
    rate: float | None
    batch_size: int
    delivery: str
    expires_in: float
    send_at: datetime | None
    grace: float
    expiration: datetime | None
    started_on: date | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    over: float | None = None  # seconds that it is spread over: its start makes a rate of it
    finish_by: datetime | None = None  # warned of, never enforced
    app_rate: float | None = None

    @property
    def held(self) -> bool:
        """Whether it was paused by the system, or its app is paused: nothing goes on until a person acts."""
        by_system = self.state is CampaignState.PAUSED and self.state_actor == "system"
        return by_system or (self.state is CampaignState.RUNNING and self.app_state != AppState.ACTIVE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verb:
    """A move that people ask for."""

    source: frozenset[CampaignState]
    target: CampaignState
    done: str  # "paused" in "cannot be paused"


def _from(target: CampaignState, *only: CampaignState) -> frozenset[CampaignState]:
    """The states from which the map allows the target, or those of them that the verb means."""
    allowed = sources(CAMPAIGN_MOVES, target)
    return allowed & frozenset(only) if only else allowed


_VERBS: dict[str, _Verb] = {
    "send": _Verb(source=_from(CampaignState.SCHEDULED), target=CampaignState.SCHEDULED, done="sent"),
    "pause": _Verb(source=_from(CampaignState.PAUSED), target=CampaignState.PAUSED, done="paused"),
    "resume": _Verb(
        source=_from(CampaignState.RUNNING, CampaignState.PAUSED), target=CampaignState.RUNNING, done="resumed"
    ),
    "cancel": _Verb(source=_from(CampaignState.CANCELLED), target=CampaignState.CANCELLED, done="cancelled"),
}

_INSERT = """
INSERT INTO {s}.campaigns (app_id, key, state, content, payload, push_type, priority, collapse_id, segment, rate,
    batch_size, delivery, expires_in, send_at, grace, canary, over, finish_by)
VALUES (%(app_id)s, %(key)s, %(state)s, %(content)s::jsonb, %(payload)s, %(push_type)s, %(priority)s, %(collapse_id)s,
    %(segment)s::jsonb, %(rate)s, %(batch_size)s, %(delivery)s, %(expires_in)s, %(send_at)s, %(grace)s,
    %(canary)s::jsonb, %(over)s, %(finish_by)s)
ON CONFLICT (key) DO NOTHING
RETURNING id
"""

_COLUMNS = """
    c.id, c.app_id, a.bundle_id, a.state AS app_state, a.state_reason AS app_state_reason, c.key, c.state,
    c.state_reason, c.state_actor, c.epoch, c.content, c.payload, c.push_type, c.priority, c.collapse_id, c.segment,
    c.rate, c.batch_size, c.delivery, c.expires_in, c.send_at, c.grace, c.expiration, c.started_on, c.created_at,
    c.started_at, c.finished_at, c.over, c.finish_by, a.rate AS app_rate
"""

_LOAD = f"SELECT {_COLUMNS} FROM {{s}}.campaigns c JOIN {{s}}.apps a ON a.id = c.app_id"

# jsonb compares by meaning: the order of keys is none, and 1 equals 1.0.
_SAME = "SELECT c.app_id = %s AND c.content = %s::jsonb AS same FROM {s}.campaigns c WHERE c.key = %s"

# What never started has nothing to settle, so that its end is now; sweep sets the end of the others.
_MOVE = """
UPDATE {s}.campaigns
SET state = %(to)s, state_reason = %(reason)s, state_actor = %(actor)s, epoch = epoch + 1,
    send_at = coalesce(%(send_at)s, send_at), paced_at = now(),
    finished_at = CASE WHEN %(final)s AND started_at IS NULL THEN now() ELSE finished_at END
WHERE key = %(key)s AND state = ANY(%(from)s)
RETURNING id
"""


def insert(transaction: Transaction, campaign: NewCampaign) -> tuple[CampaignRow, bool]:
    """Write a campaign, or find the same one under its key. Returns the row and whether it is new.

    Raises `ConflictError` when the key is taken by a campaign of another content.
    """
    content = json.dumps(campaign.content)
    values = {name: getattr(campaign, name) for name in campaign.__slots__} | {
        "state": campaign.state.value,
        "content": content,
        "segment": json.dumps(campaign.segment),
        "canary": None if campaign.canary is None else json.dumps(campaign.canary),
    }
    new = transaction.execute(_INSERT, values).fetchone() is not None
    if not new:
        found = transaction.row(_SAME, (campaign.app_id, content, campaign.key))
        if found is None:  # written by a transaction that ours cannot see (REPEATABLE READ)
            raise ConflictError(f"campaign {campaign.key!r} was enqueued by somebody else just now: try again")
        if not found["same"]:
            raise ConflictError(
                f"campaign {campaign.key!r} exists with other content: a key stands for one campaign, "
                "so choose another key for another one"
            )
    return load(transaction, campaign.key), new


def load(transaction: Transaction, campaign: str | int) -> CampaignRow:
    """The campaign with this key (text) or id (number). Raises `NotFoundError`."""
    row = transaction.row(_LOAD + f" WHERE c.{'key' if isinstance(campaign, str) else 'id'} = %s", (campaign,))
    if row is None:
        raise NotFoundError("campaign", str(campaign), "see `sender campaigns list`")
    return _row(row)


def listed(
    transaction: Transaction, *, bundle_id: str | None, state: CampaignState | None, limit: int
) -> list[CampaignRow]:
    """Campaigns, newest first."""
    statement = (
        _LOAD + " WHERE (%(app)s::text IS NULL OR a.bundle_id = %(app)s) AND (%(state)s::text IS NULL OR "
        "c.state = %(state)s) ORDER BY c.id DESC LIMIT %(limit)s"
    )
    values = {"app": bundle_id, "state": state.value if state else None, "limit": limit}
    return [_row(row) for row in transaction.rows(statement, values)]


def known_keys(transaction: Transaction, keys: list[str]) -> set[str]:
    """Which of the keys are campaigns."""
    return {row["key"] for row in transaction.rows("SELECT key FROM {s}.campaigns WHERE key = ANY(%s)", (keys,))}


def schedule(transaction: Transaction, key: str, *, actor: str, send_at: datetime | None = None) -> CampaignRow:
    """Release a draft: tick starts it when it is due. Raises `TransitionError`, `NotFoundError`."""
    return _move(transaction, "send", key, actor=actor, reason=None, send_at=send_at)


def pause(transaction: Transaction, key: str, *, actor: str, reason: str | None = None) -> CampaignRow:
    """Stop sending until `resume`. Raises `TransitionError`, `NotFoundError`."""
    return _move(transaction, "pause", key, actor=actor, reason=reason)


def resume(transaction: Transaction, key: str, *, actor: str) -> CampaignRow:
    """Go on where `pause` stopped. Raises `TransitionError`, `NotFoundError`."""
    trials.begin_anew(transaction, key)
    row = _move(transaction, "resume", key, actor=actor, reason=None)
    trials.begin_anew(transaction, key)  # the guard may have tripped in between, over answers that came late
    return row


def cancel(transaction: Transaction, key: str, *, actor: str, reason: str | None = None) -> CampaignRow:
    """End a campaign for good; what was not sent ends as cancelled. Raises `TransitionError`, `NotFoundError`."""
    return _move(transaction, "cancel", key, actor=actor, reason=reason)


def _move(
    transaction: Transaction, name: str, key: str, *, actor: str, reason: str | None, send_at: datetime | None = None
) -> CampaignRow:
    verb = _VERBS[name]
    moved = transaction.execute(
        _MOVE,
        {
            "key": key,
            "to": verb.target.value,
            "from": [state.value for state in verb.source],
            "reason": reason,
            "actor": actor,
            "send_at": send_at,
            "final": not CAMPAIGN_MOVES[verb.target],
        },
    ).fetchone()
    row = load(transaction, key)
    if moved is None:
        raise TransitionError(_refusal(row, verb))
    return row


def _refusal(row: CampaignRow, verb: _Verb) -> str:
    possible = [name for name, other in _VERBS.items() if row.state in other.source]
    if row.state is verb.target and verb.target is not CampaignState.SCHEDULED:
        wrong = f"campaign {row.key!r} is {row.state} already"
    else:
        wrong = f"campaign {row.key!r} is {row.state} and cannot be {verb.done}"
    return f"{wrong}; possible now: {', '.join(possible)}" if possible else f"{wrong}; it has ended, for good"


def _row(row: Mapping[str, Any]) -> CampaignRow:
    return CampaignRow(**{**row, "state": CampaignState(row["state"]), "payload": bytes(row["payload"])})
