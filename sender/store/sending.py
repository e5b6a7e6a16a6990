"""What a worker looks up around a send: which credentials an app has, and whether a campaign still sends."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sender.model import CredentialKind, CredentialRef, Environment
from sender.store.database import Transaction

_CREDENTIALS = """
SELECT app_id, environment, kind, file, team_id, key_id, passphrase_env FROM {s}.credentials
WHERE %(app)s::bigint IS NULL OR app_id = %(app)s
"""

_STANDING = """
SELECT c.id, c.state = 'running' AND a.state = 'active' AS sends, c.rate, a.rate AS app_rate
FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id WHERE c.id = ANY(%s)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Whether a campaign sends now, and how fast it and its app may (pushes a second; None: unlimited)."""

    sends: bool
    rate: float | None
    app_rate: float | None


def credentials(transaction: Transaction, app_id: int) -> dict[str, CredentialRef]:
    """An app's credentials by environment."""
    return {ref.environment.value: ref for ref in _references(transaction, app_id)}


def all_credentials(transaction: Transaction) -> list[CredentialRef]:
    """Every credential of every app."""
    return _references(transaction, None)


def standings(transaction: Transaction, campaign_ids: Collection[int]) -> dict[int, Standing]:
    """Where these campaigns stand now."""
    rows = transaction.execute(_STANDING, (list(campaign_ids),))
    return {id: Standing(sends=sends, rate=rate, app_rate=app_rate) for id, sends, rate, app_rate in rows}


def _references(transaction: Transaction, app_id: int | None) -> list[CredentialRef]:
    return [
        CredentialRef(
            kind=CredentialKind(kind),
            environment=Environment(environment),
            file=file,
            team_id=team_id,
            key_id=key_id,
            passphrase_env=passphrase_env,
        )
        for _, environment, kind, file, team_id, key_id, passphrase_env in transaction.execute(
            _CREDENTIALS, {"app": app_id}
        )
    ]
