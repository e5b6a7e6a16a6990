"""Heartbeats: which processes live, whether the claims they hold do, and when the periodic jobs last ran."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from sender.store.database import Transaction

_BEAT = """
INSERT INTO {s}.workers (id, role, host, pid, version, clock, credentials)
VALUES (%(id)s, %(role)s, %(host)s, %(pid)s, %(version)s, %(clock)s, %(credentials)s)
ON CONFLICT (id) DO UPDATE
SET beats = workers.beats + 1, seen_at = now(), clock = excluded.clock, credentials = excluded.credentials
"""

#: A claim whose row is locked is just being recorded: it lives, and the others must not wait for it.
_BEAT_CLAIMS = """
WITH mine AS MATERIALIZED (
    SELECT b.id, b.owner FROM {s}.batches b
    JOIN unnest(%s::bigint[], %s::uuid[]) AS held(id, owner) ON b.id = held.id AND b.owner = held.owner
    WHERE b.state = 'claimed'
), free AS MATERIALIZED (
    SELECT b.id FROM {s}.batches b JOIN mine ON mine.id = b.id FOR UPDATE OF b SKIP LOCKED
), beat AS (
    UPDATE {s}.batches b SET beats = b.beats + 1 FROM free WHERE b.id = free.id
) SELECT owner FROM mine
"""

_PULSE = "INSERT INTO {s}.pulses (name, at) VALUES (%s, now()) ON CONFLICT (name) DO UPDATE SET at = now()"


def beat(
    transaction: Transaction,
    *,
    id: UUID,
    role: str,
    host: str,
    pid: int,
    version: str,
    clock: datetime,
    credentials: Mapping[str, str | None],
) -> None:
    """Say that this process lives; `clock` is its host's own time, `credentials` maps identities to faults."""
    transaction.execute(
        _BEAT,
        {
            "id": id,
            "role": role,
            "host": host,
            "pid": pid,
            "version": version,
            "clock": clock,
            "credentials": json.dumps(credentials),
        },
    )


def beat_claims(transaction: Transaction, batches: Sequence[int], owners: Sequence[UUID]) -> set[UUID]:
    """Say that these claims live. Returns the owners whose claims are still theirs."""
    return {owner for (owner,) in transaction.execute(_BEAT_CLAIMS, (list(batches), list(owners)))}


def retire(transaction: Transaction, id: UUID) -> None:
    """Take this process off the list: it ended in order."""
    transaction.execute("DELETE FROM {s}.workers WHERE id = %s", (id,))


def forget_dead(transaction: Transaction, *, seconds: float) -> int:
    """Take processes off the list that were last seen `seconds` ago."""
    cursor = transaction.execute(
        "DELETE FROM {s}.workers WHERE seen_at < now() - make_interval(secs => %s)", (seconds,)
    )
    return cursor.rowcount


def pulse(transaction: Transaction, name: str) -> None:
    """Say that a periodic job ran."""
    transaction.execute(_PULSE, (name,))
