"""Apps and where their credentials are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sender.model import CredentialKind, CredentialRef, Environment
from sender.policy.states import APP_MOVES, AppState, sources
from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """An application: a bundle id, its state, its limit (pushes a second, None: unlimited), its credentials."""

    id: int
    bundle_id: str
    state: AppState
    state_reason: str | None
    state_changed_at: datetime
    rate: float | None
    created_at: datetime
    healing: bool  # BadDeviceToken is tried in the other environment
    credentials: tuple[CredentialRef, ...]

    @property
    def environments(self) -> tuple[Environment, ...]:
        """The environments in which it can push."""
        return tuple(ref.environment for ref in self.credentials)


_SELECT = """
SELECT a.id, a.bundle_id, a.state, a.state_reason, a.state_changed_at, a.rate, a.created_at, a.healing,
       coalesce((SELECT jsonb_agg(to_jsonb(c) ORDER BY c.environment)
                 FROM {s}.credentials c WHERE c.app_id = a.id), '[]') AS credentials
FROM {s}.apps a
"""


def find(transaction: Transaction, bundle_id: str) -> App | None:
    """The app of that bundle id, or None."""
    row = transaction.row(_SELECT + "WHERE a.bundle_id = %(bundle_id)s", {"bundle_id": bundle_id})
    return None if row is None else _app(row)


def list_all(transaction: Transaction) -> list[App]:
    """Every app, by bundle id."""
    return [_app(row) for row in transaction.rows(_SELECT + "ORDER BY a.bundle_id")]


def add(transaction: Transaction, bundle_id: str) -> int | None:
    """A new app's id, or None when the bundle id is there already. Two callers at once: the second one waits."""
    row = transaction.execute(
        "INSERT INTO {s}.apps (bundle_id) VALUES (%s) ON CONFLICT (bundle_id) DO NOTHING RETURNING id", [bundle_id]
    ).fetchone()
    return row[0] if row else None


def set_credentials(transaction: Transaction, app_id: int, refs: Sequence[CredentialRef]) -> None:
    """Keep these credentials, each in the place of its environment's former one; workers notice at once."""
    for ref in refs:
        transaction.execute(
            """
            INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id, passphrase_env)
            VALUES (%(app)s, %(environment)s, %(kind)s, %(file)s, %(team_id)s, %(key_id)s, %(passphrase_env)s)
            ON CONFLICT (app_id, environment) DO UPDATE SET kind = excluded.kind, file = excluded.file,
                team_id = excluded.team_id, key_id = excluded.key_id, passphrase_env = excluded.passphrase_env,
                created_at = now()
            """,
            {
                "app": app_id,
                "environment": ref.environment.value,
                "kind": ref.kind.value,
                "file": ref.file,
                "team_id": ref.team_id,
                "key_id": ref.key_id,
                "passphrase_env": ref.passphrase_env,
            },
        )
    transaction.execute("UPDATE {s}.apps SET epoch = epoch + 1 WHERE id = %s", [app_id])


def set_rate(transaction: Transaction, app_id: int, rate: float | None) -> None:
    """Limit the app's pushes a second over all workers; None lifts the limit."""
    transaction.execute(
        "UPDATE {s}.apps SET rate = %s, paced_at = now(), epoch = epoch + 1 WHERE id = %s", [rate, app_id]
    )


def set_healing(transaction: Transaction, app_id: int, on: bool) -> None:
    """Whether refused tokens of the app are tried in the other environment."""
    transaction.execute("UPDATE {s}.apps SET healing = %s, epoch = epoch + 1 WHERE id = %s", [on, app_id])


def pause_app(transaction: Transaction, app_id: int, reason: str) -> bool:
    """Stop the app's campaigns until a person resumes it. False when it is paused already: the first reason stays."""
    return _move(transaction, app_id, AppState.PAUSED, reason)


def resume_app(transaction: Transaction, app_id: int) -> bool:
    """Let the app's campaigns go on. False when it is not paused."""
    return _move(transaction, app_id, AppState.ACTIVE, None)


def open_campaigns(transaction: Transaction, app_id: int, *, most: int = 5) -> list[str]:
    """Keys of the app's campaigns that are not over. Locks the app, so that none can be added meanwhile."""
    transaction.execute("SELECT FROM {s}.apps WHERE id = %s FOR UPDATE", [app_id])
    found = transaction.execute(
        """
        SELECT key FROM {s}.campaigns
        WHERE app_id = %s AND (state IN ('scheduled', 'running', 'paused')
                               OR started_at IS NOT NULL AND finished_at IS NULL)
        ORDER BY id LIMIT %s
        """,
        [app_id, most],
    )
    return [key for (key,) in found]


_REMOVE = (
    "DELETE FROM {s}.retries WHERE campaign_id IN (SELECT id FROM {s}.campaigns WHERE app_id = %s)",
    "DELETE FROM {s}.batches WHERE campaign_id IN (SELECT id FROM {s}.campaigns WHERE app_id = %s)",
    "DELETE FROM {s}.limits WHERE scope IN "
    "(SELECT 'campaign:' || id FROM {s}.campaigns WHERE app_id = %(app)s UNION ALL SELECT 'app:' || %(app)s)",
    "DELETE FROM {s}.campaigns WHERE app_id = %s",
    "DELETE FROM {s}.devices WHERE app_id = %s",
    "DELETE FROM {s}.apps WHERE id = %s",
)


def remove(transaction: Transaction, app_id: int) -> None:
    """Delete the app with its credentials, devices and campaigns. Ledger and changelog rows go by their retention."""
    for statement in _REMOVE:
        transaction.execute(statement, {"app": app_id} if "%(app)s" in statement else [app_id])


def count_devices(transaction: Transaction, app_id: int) -> int:
    """How many devices the app has, in whatever state."""
    row = transaction.execute("SELECT count(*) FROM {s}.devices WHERE app_id = %s", [app_id]).fetchone()
    return int(row[0]) if row else 0


def _move(transaction: Transaction, app_id: int, target: AppState, reason: str | None) -> bool:
    moved = transaction.execute(
        """
        UPDATE {s}.apps SET state = %(to)s, state_reason = %(reason)s, state_changed_at = now(), paced_at = now(),
            epoch = epoch + 1
        WHERE id = %(app)s AND state = ANY(%(from)s)
        """,
        {"app": app_id, "to": target.value, "reason": reason, "from": list(sources(APP_MOVES, target))},
    )
    return moved.rowcount > 0


def _app(row: dict[str, Any]) -> App:
    return App(
        id=row["id"],
        bundle_id=row["bundle_id"],
        state=AppState(row["state"]),
        state_reason=row["state_reason"],
        state_changed_at=row["state_changed_at"],
        rate=row["rate"],
        created_at=row["created_at"],
        healing=row["healing"],
        credentials=tuple(_credential(kept) for kept in row["credentials"]),
    )


def _credential(kept: dict[str, Any]) -> CredentialRef:
    return CredentialRef(
        kind=CredentialKind(kept["kind"]),
        environment=Environment(kept["environment"]),
        file=kept["file"],
        team_id=kept["team_id"],
        key_id=kept["key_id"],
        passphrase_env=kept["passphrase_env"],
    )
