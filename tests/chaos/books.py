"""What the database says of a campaign: its ledger, its open work, and what is in flight at a moment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psycopg

_OF_CAMPAIGN = "JOIN {s}.campaigns c ON c.id = t.campaign_id WHERE c.key = %s"
_OUTCOMES = f"SELECT t.outcome, count(*) FROM {{s}}.deliveries t {_OF_CAMPAIGN} GROUP BY 1"
_FINALS = f"""
SELECT d.token, t.outcome FROM {{s}}.deliveries t JOIN {{s}}.devices d ON d.id = t.device_id {_OF_CAMPAIGN}
"""
_BATCHES = f"SELECT t.id, t.state FROM {{s}}.batches t {_OF_CAMPAIGN} AND t.state <> 'done'"
_RETRIES = f"SELECT t.device_id, t.reason FROM {{s}}.retries t {_OF_CAMPAIGN}"
_INTENTS = f"SELECT t.device_id, t.batch_id FROM {{s}}.intents t {_OF_CAMPAIGN}"
_COUNTED = f"""
SELECT sum(sent), sum(rejected), sum(skipped), sum(expired), sum(unknown), sum(cancelled), sum(failed)
FROM {{s}}.batches t {_OF_CAMPAIGN}
"""
_OUTCOME_COLUMNS = ("sent", "rejected", "skipped", "expired", "unknown", "cancelled", "failed")
_CLAIMS = f"SELECT t.id, t.epoch, t.state = 'claimed', t.size FROM {{s}}.batches t {_OF_CAMPAIGN}"
_CUT_BACKENDS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = current_user AND pid <> pg_backend_pid() AND %s = ''
"""
_UNDER_WAY = """
SELECT FROM pg_stat_activity
WHERE application_name LIKE 'sender%%' AND pid <> pg_backend_pid() AND state = 'active'
  AND wait_event IS DISTINCT FROM 'ClientRead'  -- what it got is done, and more was announced: a pipeline
  AND query_start < %s::timestamptz
"""
_WAITING_FOR_LOCKS = """
SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'sender%%' AND wait_event_type = %s
"""
_OPEN_INTENTS = f"SELECT count(*) FROM {{s}}.intents t {_OF_CAMPAIGN}"
_UNKNOWN = f"SELECT count(*) FROM {{s}}.deliveries t {_OF_CAMPAIGN} AND t.outcome = 'unknown'"
_SENT = f"SELECT coalesce(sum(sent), 0) FROM {{s}}.batches t {_OF_CAMPAIGN}"
_SETTLED = f"SELECT coalesce(sum(sent + rejected + unknown), 0) FROM {{s}}.batches t {_OF_CAMPAIGN}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What is claimed, intended, and written down at a moment."""

    claims: Mapping[int, tuple[int, bool, int]]  # batch -> (claims so far, whether it is claimed, devices)
    intents: int
    unknown: int
    sent: int


class Books:
    """Reads from the stack's database on a connection of its own, which is made anew when it was lost."""

    def __init__(self, url: str, schema: str = "sender") -> None:
        self._url = url
        self._schema = schema
        self._connection: psycopg.Connection[Any] | None = None

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def outcomes(self, key: str) -> dict[str, int]:
        """Outcome -> rows of the ledger."""
        return dict(self._rows(_OUTCOMES, key))

    def finals(self, key: str) -> list[tuple[str, str]]:
        """(token, outcome) of every row of the ledger."""
        return self._rows(_FINALS, key)

    def counted(self, key: str) -> dict[str, int]:
        """Outcome -> what the batches have counted, without the zeros."""
        (sums,) = self._rows(_COUNTED, key)
        return {name: int(total) for name, total in zip(_OUTCOME_COLUMNS, sums, strict=True) if total}

    def open_work(self, key: str) -> list[tuple[Any, ...]]:
        """Batches that are not done, retries that wait, intents without a result."""
        return [row for statement in (_BATCHES, _RETRIES, _INTENTS) for row in self._rows(statement, key)]

    def settled(self, key: str) -> int | None:
        """How many deliveries have a result; None when the database does not answer at once."""
        try:
            ((settled,),) = self._rows(_SETTLED, key, within=0.0)
        except psycopg.Error:
            return None
        return int(settled)

    def moment(self, key: str, *, within: float = 1.0) -> Moment | None:
        """What is in flight now; None when the database does not answer within so many seconds."""
        try:
            claims = {id: (epoch, held, size) for id, epoch, held, size in self._rows(_CLAIMS, key, within=within)}
            ((intents,),) = self._rows(_OPEN_INTENTS, key, within=within)
            ((unknown,),) = self._rows(_UNKNOWN, key, within=within)
            ((sent,),) = self._rows(_SENT, key, within=within)
        except psycopg.Error:
            return None
        return Moment(claims=claims, intents=intents, unknown=unknown, sent=int(sent))

    def wait_for_what_is_under_way(self) -> None:
        """Wait until PostgreSQL has come to an end with every statement of the application that it has got by now: of a
        process that stands still, nothing more is written then."""
        ((now,),) = self._rows("SELECT clock_timestamp()::text || %s", "")
        end = time.monotonic() + 30.0
        while self._rows(_UNDER_WAY, now):
            assert time.monotonic() < end, "a statement does not end"
            time.sleep(0.05)

    def waiting_for_locks(self) -> int:
        """How many connections of the application wait for a lock."""
        ((waiting,),) = self._rows(_WAITING_FOR_LOCKS, "Lock")
        return int(waiting)

    def cut_backends(self) -> None:
        """Have PostgreSQL end every connection of the application but this one."""
        with suppress(psycopg.Error):  # it is away already
            self._rows(_CUT_BACKENDS, "", within=0.0)

    def _rows(self, statement: str, key: str, *, within: float = 30.0) -> list[tuple[Any, ...]]:
        text = statement.replace("{s}", self._schema)
        end = time.monotonic() + within
        while True:
            try:
                if self._connection is None:
                    self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=2)
                return self._connection.execute(text, (key,)).fetchall()
            except psycopg.OperationalError:
                self.close()
                if time.monotonic() >= end:
                    raise
                time.sleep(0.05)
