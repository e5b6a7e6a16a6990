"""What `sender doctor` asks the database: its version and clock, who works, what ticks, what rests or is paused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sender.model import CredentialKind, CredentialRef, Environment
from sender.store import breakers
from sender.store.breakers import Breaker
from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerHealth:
    """The database server."""

    version: str  # such as "18.1"
    now: datetime
    connections: int  # of everybody
    most_connections: int  # that ordinary roles may have together


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerHealth:
    """A process that works or beats, as its last heartbeat row says."""

    role: str
    host: str
    pid: int
    version: str
    silent_for: float  # seconds since its last heartbeat, by the database's clock
    ahead_by: float | None  # seconds by which its clock ran before the database's at that heartbeat
    credentials: Mapping[str, str | None]  # identity -> why it cannot be read, or None

    @property
    def name(self) -> str:
        return f"{self.role} worker {self.host}:{self.pid}" if self.role != "beat" else f"beat {self.host}:{self.pid}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppHealth:
    """An app with its credentials."""

    bundle_id: str
    state: str
    state_reason: str | None
    state_changed_at: datetime
    credentials: tuple[CredentialRef, ...]


_SERVER = """
SELECT current_setting('server_version') AS version, clock_timestamp() AS now,
       (SELECT coalesce(sum(numbackends), 0) FROM pg_stat_database)::int AS connections,
       current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
           AS most_connections
"""

_WORKERS = """
SELECT role, host, pid, version, credentials,
       extract(epoch FROM now() - seen_at)::float8 AS silent_for,
       extract(epoch FROM clock - seen_at)::float8 AS ahead_by
FROM {s}.workers ORDER BY role, host, pid
"""

_APPS = """
SELECT a.bundle_id, a.state, a.state_reason, a.state_changed_at,
       c.environment, c.kind, c.file, c.team_id, c.key_id, c.passphrase_env
FROM {s}.apps a LEFT JOIN {s}.credentials c ON c.app_id = a.id
ORDER BY a.bundle_id, c.environment
"""


def server(transaction: Transaction) -> ServerHealth:
    """The server's version, its time at this moment, and its connections."""
    [row] = transaction.rows(_SERVER)
    return ServerHealth(**row | {"version": row["version"].split()[0]})


def workers(transaction: Transaction) -> list[WorkerHealth]:
    """Everything that has a heartbeat row, the dead included."""
    return [WorkerHealth(**row) for row in transaction.rows(_WORKERS)]


def pulses(transaction: Transaction) -> dict[str, float]:
    """Seconds since each periodic job ran, by the database's clock."""
    statement = "SELECT name, extract(epoch FROM now() - at)::float8 AS seconds FROM {s}.pulses"
    return {row["name"]: row["seconds"] for row in transaction.rows(statement)}


def apps(transaction: Transaction) -> list[AppHealth]:
    """Every app with its credentials."""
    found: dict[str, AppHealth] = {}
    refs: dict[str, list[CredentialRef]] = {}
    rows = transaction.rows(_APPS)
    for row in rows:
        if row["environment"] is not None:
            refs.setdefault(row["bundle_id"], []).append(
                CredentialRef(
                    kind=CredentialKind(row["kind"]),
                    environment=Environment(row["environment"]),
                    file=row["file"],
                    team_id=row["team_id"],
                    key_id=row["key_id"],
                    passphrase_env=row["passphrase_env"],
                )
            )
    for row in rows:
        found[row["bundle_id"]] = AppHealth(
            bundle_id=row["bundle_id"],
            state=row["state"],
            state_reason=row["state_reason"],
            state_changed_at=row["state_changed_at"],
            credentials=tuple(refs.get(row["bundle_id"], ())),
        )
    return list(found.values())


def credentials(transaction: Transaction) -> list[Breaker]:
    """Credentials that rest or are slowed down at this moment."""
    return breakers.read_all(transaction)
