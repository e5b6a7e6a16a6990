"""Breakers and adaptive paces: one row a credential, shared by every worker. Every move is a compare-and-set."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sender.policy.breaker import (
    CALM_AFTER,
    CUT_EVERY,
    FLOOR,
    FORGIVEN_AFTER,
    STALE_AFTER,
    UNKNOWN_TOP,
    climb,
    cut,
    open_seconds,
)
from sender.policy.states import BREAKER_MOVES, BreakerState, sources
from sender.store.database import Transaction

#: Seconds within which a worker with a heartbeat counts as sending too, when its share of the pace is estimated.
_ALIVE = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """The state of a credential, and its pace (pushes a second; None: not limited by this)."""

    credential: str
    state: BreakerState = BreakerState.CLOSED
    cause: str | None = None
    since: datetime | None = None
    until: datetime | None = None  # open: no probe before; half open: the time that the probe has
    wait: float = 0.0  # seconds from now to `until`, by the database's clock; 0 when it has passed
    trips: int = 0
    pace: float | None = None
    pace_top: float | None = None
    pace_cause: str | None = None
    slowed_at: datetime | None = None  # the last cut since it closed

    @property
    def closed(self) -> bool:
        """Whether anything may be sent."""
        return self.state is BreakerState.CLOSED

    @property
    def plain(self) -> bool:
        """Nothing to speak of: closed, and not slowed down."""
        return self.closed and self.pace is None

    def in_words(self) -> str:
        """Its state, cause, since when and until when, for a person."""
        since = f"since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since else ""
        match self.state:
            case BreakerState.OPEN if not self.wait:
                return f"rests {since}, and is tried again with the next push: {self.cause}"
            case BreakerState.OPEN:
                until = f"until {self.until:%H:%M:%S %Z}" if self.until else ""
                return f"rests {since} {until}: {self.cause}"
            case BreakerState.HALF_OPEN:
                return f"is tried with a single push {since}, after: {self.cause}"
            case _ if self.pace is None:
                return "sends"
            case _:
                top = f", on its way to {self.pace_top:,.0f}/s" if self.pace_top else ""
                why = f"after it rested: {self.pace_cause}" if self.ramping else self.pace_cause
                return f"is slowed down to {self.pace:,.0f} pushes/s{top}: {why}"

    @property
    def ramping(self) -> bool:
        """It closed, and there was no signal since: the pace doubles."""
        return self.closed and self.slowed_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Why a breaker opens, and for how long: by its back-off (`chance`, `scale`), and `at_least` so many seconds.
    `measured`: pushes a second that this worker had answers to, which it climbs back to."""

    cause: str
    chance: float
    scale: float = 1.0
    at_least: float = 0.0
    measured: float = 0.0


_STALE = f"state = 'closed' AND paced_at <= clock_timestamp() - interval '{STALE_AFTER} seconds'"

_COLUMNS = f"""
credential, state, cause, since, until,
greatest(0, coalesce(extract(epoch FROM until - clock_timestamp()), 0))::float8 AS wait,
trips, CASE WHEN {_STALE} THEN NULL ELSE pace END AS pace, CASE WHEN {_STALE} THEN NULL ELSE pace_top END AS pace_top,
pace_cause, slowed_at
"""

_READ = f"SELECT {_COLUMNS} FROM {{s}}.breakers WHERE credential = ANY(%s)"

_READ_ALL = f"""
SELECT {_COLUMNS} FROM {{s}}.breakers
WHERE state <> 'closed' OR pace IS NOT NULL AND NOT ({_STALE}) ORDER BY credential
"""

#: Locked for a move; openings that are long past are forgiven.
_LOCK = f"""
SELECT {_COLUMNS}, since < now() - make_interval(secs => %(forgiven)s) AS forgiven
FROM {{s}}.breakers WHERE credential = %(credential)s FOR UPDATE
"""

_OPEN = """
INSERT INTO {s}.breakers (credential, state, until, cause, trips, pace_top)
VALUES (%(credential)s, 'open', clock_timestamp() + make_interval(secs => %(seconds)s), %(cause)s, %(trips)s, %(top)s)
ON CONFLICT (credential) DO UPDATE
SET since = CASE WHEN breakers.state = 'open' THEN breakers.since ELSE now() END,
    state = 'open',
    until = CASE WHEN breakers.state = 'open' THEN greatest(breakers.until, excluded.until) ELSE excluded.until END,
    cause = excluded.cause, trips = excluded.trips, pace = NULL, pace_top = excluded.pace_top, slowed_at = NULL
"""

_PROBE = f"""
UPDATE {{s}}.breakers
SET state = 'half_open', since = now(), until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE credential = %(credential)s AND state IN ('open', 'half_open') AND until <= clock_timestamp()
RETURNING {_COLUMNS}
"""

_CLOSE = """
UPDATE {s}.breakers
SET state = 'closed', since = now(), until = NULL, pace = %(pace)s, pace_top = greatest(pace_top, %(top)s),
    pace_cause = cause, paced_at = clock_timestamp(), slowed_at = NULL
WHERE credential = %(credential)s AND state = ANY(%(sources)s) AND (%(until)s::timestamptz IS NULL OR until = %(until)s)
"""

_GIVE_BACK = """
UPDATE {s}.breakers SET state = 'open', since = now(), until = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE credential = %(credential)s AND state = 'half_open' AND until = %(until)s
"""

_SLOW_DOWN = """
INSERT INTO {s}.breakers (credential, pace, pace_top, pace_cause, paced_at, slowed_at)
VALUES (%(credential)s, %(pace)s, %(top)s, %(cause)s, clock_timestamp(), clock_timestamp())
ON CONFLICT (credential) DO UPDATE
SET pace = excluded.pace, pace_top = excluded.pace_top, pace_cause = excluded.pace_cause,
    paced_at = excluded.paced_at, slowed_at = excluded.slowed_at
WHERE breakers.state = 'closed'
  AND (breakers.slowed_at IS NULL OR breakers.slowed_at <= clock_timestamp() - make_interval(secs => %(every)s))
"""

_SPEED_UP = """
UPDATE {s}.breakers
SET pace = %(raised)s, paced_at = clock_timestamp(),
    pace_top = CASE WHEN %(raised)s::float8 IS NULL THEN NULL ELSE pace_top END,
    pace_cause = CASE WHEN %(raised)s::float8 IS NULL THEN NULL ELSE pace_cause END,
    trips = CASE WHEN %(raised)s::float8 IS NULL THEN 0 ELSE trips END
WHERE credential = %(credential)s AND state = 'closed' AND pace = %(pace)s
  AND paced_at <= clock_timestamp() - interval '1 second'
  AND (slowed_at IS NULL OR slowed_at <= clock_timestamp() - make_interval(secs => %(calm)s))
RETURNING pace
"""

_SENDING = """
SELECT greatest(1, count(*)) FROM {s}.workers
WHERE role IN ('campaign', 'worker', 'all') AND seen_at > now() - make_interval(secs => %s)
"""

_BRING_FORWARD = """
UPDATE {s}.batches SET due_at = NULL WHERE id IN (
    SELECT b.id FROM {s}.batches b JOIN {s}.campaigns c ON c.id = b.campaign_id
    WHERE c.app_id = ANY(%(apps)s) AND c.finished_at IS NULL AND c.started_at IS NOT NULL
      AND b.id > c.low_batch_id AND b.state = 'open' AND b.due_at > now()
    ORDER BY b.id FOR UPDATE OF b
)
"""

_BRING_RETRIES_FORWARD = """
UPDATE {s}.retries r SET due_at = now()
FROM {s}.campaigns c
WHERE c.app_id = ANY(%(apps)s) AND c.finished_at IS NULL AND r.campaign_id = c.id AND r.batch_id IS NULL
  AND r.due_at > now() AND r.reason = 'CredentialHeld'
"""


def read(transaction: Transaction, identities: Collection[str]) -> dict[str, Breaker]:
    """The breakers of these credentials; one that was never slowed down or opened has none."""
    return {row["credential"]: _breaker(row) for row in transaction.rows(_READ, (list(identities),))}


def read_all(transaction: Transaction) -> list[Breaker]:
    """Every credential that is not sent with at full speed now."""
    return [_breaker(row) for row in transaction.rows(_READ_ALL)]


def trip(transaction: Transaction, identity: str, opening: Opening) -> Breaker | None:
    """Open a closed breaker; None when another worker has."""
    known = _locked(transaction, identity)
    return _open(transaction, known, opening) if known.closed else None


def hold(transaction: Transaction, identity: str, opening: Opening) -> Breaker:
    """Have a credential rest for a while whatever its breaker's state: APNs said so in words."""
    return _open(transaction, _locked(transaction, identity), opening)


def fail_probe(transaction: Transaction, identity: str, opening: Opening, until: datetime) -> Breaker | None:
    """Open it again after a probe that had until then; None when that probe's time is over and another's came."""
    known = _locked(transaction, identity)
    if known.state is not BreakerState.HALF_OPEN or known.until != until:
        return None
    return _open(transaction, known, opening)


def begin_probe(transaction: Transaction, identity: str, *, seconds: float) -> Breaker | None:
    """Take the right to send one probe within so many seconds; None when it is not time, or another has it."""
    row = transaction.row(_PROBE, {"credential": identity, "seconds": seconds})
    return None if row is None else _breaker(row)


def give_back_probe(transaction: Transaction, identity: str, until: datetime, *, seconds: float = 0.0) -> None:
    """The probe says nothing, as when it could not be sent: the next may try in so many seconds."""
    transaction.execute(_GIVE_BACK, {"credential": identity, "until": until, "seconds": seconds})


def close_one(transaction: Transaction, identity: str, *, until: datetime | None = None) -> bool:
    """Close a breaker; the pace starts low and ramps up. `until` is the time that the probe had which was answered;
    None: a person closes it. False when it was not open, or the probe was another's."""
    open_states = [BreakerState.HALF_OPEN] if until is not None else sources(BREAKER_MOVES, BreakerState.CLOSED)
    values = {"credential": identity, "until": until, "pace": FLOOR, "top": UNKNOWN_TOP, "sources": list(open_states)}
    return transaction.execute(_CLOSE, values).rowcount == 1


def slow_down(transaction: Transaction, identity: str, *, measured: float, cause: str) -> Breaker | None:
    """Halve the pace, at most once a second over all workers; None when that was done just now, or it is open.

    `measured`: pushes a second that this worker had answers to. Where there was no pace before, the others are taken
    to have as many.
    """
    known = _locked(transaction, identity)
    total = measured * _workers(transaction)
    pace = cut(known.pace, total)
    top = max(known.pace_top or 0.0, UNKNOWN_TOP if known.pace is None and total < FLOOR else total, pace)
    values = {"credential": identity, "pace": pace, "top": top, "cause": cause, "every": CUT_EVERY}
    if transaction.execute(_SLOW_DOWN, values).rowcount == 0:
        return None
    return read(transaction, [identity]).get(identity)


def speed_up(transaction: Transaction, known: Breaker) -> bool:
    """Raise a pace by one step, at most once a second over all workers and never soon after a cut."""
    if known.pace is None or not known.closed:
        return False
    values = {
        "credential": known.credential,
        "pace": known.pace,
        "raised": climb(known.pace, known.pace_top or UNKNOWN_TOP, ramping=known.ramping),
        "calm": CALM_AFTER,
    }
    return transaction.execute(_SPEED_UP, values).rowcount == 1


def bring_forward(transaction: Transaction, app_ids: Collection[int]) -> None:
    """Have what these apps keep waiting for a credential be due now."""
    transaction.execute(_BRING_FORWARD, {"apps": list(app_ids)})
    transaction.execute(_BRING_RETRIES_FORWARD, {"apps": list(app_ids)})


def _open(transaction: Transaction, known: Breaker, opening: Opening) -> Breaker:
    again = known.state is BreakerState.OPEN  # the same trouble, told by another worker
    trips = max(1, known.trips) if again else min(known.trips + 1, 100)
    top = max(known.pace_top or 0.0, opening.measured * _workers(transaction) if opening.measured else 0.0)
    values = {
        "credential": known.credential,
        "seconds": max(opening.at_least, open_seconds(trips, opening.chance, scale=opening.scale)),
        "cause": opening.cause,
        "trips": trips,
        "top": top or None,
    }
    transaction.execute(_OPEN, values)
    return read(transaction, [known.credential])[known.credential]


def _locked(transaction: Transaction, identity: str) -> Breaker:
    transaction.execute("INSERT INTO {s}.breakers (credential) VALUES (%s) ON CONFLICT DO NOTHING", (identity,))
    row = transaction.row(_LOCK, {"credential": identity, "forgiven": FORGIVEN_AFTER})
    if row is None:
        return Breaker(credential=identity)
    forgiven = row.pop("forgiven")
    return _breaker({**row, "trips": 0} if forgiven else row)


def _breaker(row: Mapping[str, Any]) -> Breaker:
    return Breaker(**{**row, "state": BreakerState(row["state"])})


def _workers(transaction: Transaction) -> int:
    """How many processes may be sending campaigns now; at least this one."""
    row = transaction.execute(_SENDING, (_ALIVE,)).fetchone()
    return int(row[0]) if row else 1
