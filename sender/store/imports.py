"""The staging table of an import, and its merge into the devices.

The file is staged whole first, in tables of its own that no other import sees; then it is merged in slices of the
tokens' order, each slice its own short transaction. So a file that turns out to be broken leaves nothing behind, a
crash in the merge leaves a part that a repeat completes, and no lock is held for long. Slices that deadlock with a
batch's results run again.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import psycopg

from sender.model import Environment
from sender.store.database import Database, Transaction

T = TypeVar("T")

SLICE = 20_000  # rows merged in one transaction
_PAGES = 4096  # of the staged file, whose users are added in one transaction
_LEFTOVER = 7 * 86_400  # seconds after which the tables of an import that died are dropped
_ATTEMPTS = 5

_CREATE = """
CREATE UNLOGGED TABLE {s}.<staging> (
    line bigint NOT NULL, token text COLLATE "C" NOT NULL, external_user text, environment text, locale text,
    timezone text, registered_at timestamptz, last_seen_at timestamptz, "authorization" text, state text NOT NULL,
    attributes jsonb NOT NULL)
"""

_STAGING_TABLES = """
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname ~ '^import_[0-9]{9,11}_[0-9a-f]{8}'
"""

#: Read by pages: no index is needed, and no slice is looked at twice.
_ADD_USERS = """
INSERT INTO {s}.users (external_id)
SELECT DISTINCT r.external_user FROM {s}.<staging> r
WHERE r.ctid >= %(first)s::tid AND r.ctid < %(last)s::tid AND r.external_user IS NOT NULL
  AND NOT EXISTS (SELECT FROM {s}.users u WHERE u.external_id = r.external_user)
ORDER BY 1
ON CONFLICT (external_id) DO NOTHING
"""

#: One row a token: the newest registration, and of equals the last line. A time in the future counts as now.
_SORT = """
CREATE UNLOGGED TABLE {s}.<staging>_sorted AS
SELECT row_number() OVER (ORDER BY r.token) AS n, r.token, u.id AS user_id, r.environment, r.locale, r.timezone,
       CASE WHEN r.registered_at > now() THEN now() ELSE r.registered_at END AS registered_at,
       CASE WHEN r.last_seen_at > now() THEN now() ELSE r.last_seen_at END AS last_seen_at,
       r."authorization", r.state, r.attributes
FROM (SELECT DISTINCT ON (token) * FROM {s}.<staging>
      ORDER BY token, registered_at DESC NULLS LAST, line DESC) r
LEFT JOIN {s}.users u ON u.external_id = r.external_user
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What merging did, in rows."""

    tokens: int = 0  # different ones
    added: int = 0
    updated: int = 0
    outdated: int = 0

    def __add__(self, other: Merged) -> Merged:
        return Merged(
            tokens=self.tokens + other.tokens,
            added=self.added + other.added,
            updated=self.updated + other.updated,
            outdated=self.outdated + other.outdated,
        )


def drop_leftovers(transaction: Transaction) -> None:
    """Drop the tables of imports that died long ago: they hold tokens and users."""
    for (name,) in transaction.execute(_STAGING_TABLES, [transaction.schema]).fetchall():
        if int(name.split("_")[1]) < time.time() - _LEFTOVER:
            transaction.execute(f"DROP TABLE IF EXISTS {{s}}.{name}")


class Staging:
    """The staging table of one import."""

    def __init__(self, database: Database, *, app_id: int, default_environment: Environment) -> None:
        self._database = database
        self._app_id = app_id
        self._default_environment = default_environment
        self._name = f"import_{int(time.time())}_{secrets.token_hex(4)}"

    def create(self) -> None:
        """Make the table, and drop those that imports left behind which died long ago."""
        with self._database.transaction() as transaction:
            drop_leftovers(transaction)
            transaction.execute(self._sql(_CREATE))

    def copy(self, columns: Sequence[str], block: bytes) -> None:
        """Append rows in COPY's text format."""
        names = ", ".join(f'"{column}"' for column in columns)
        with self._database.transaction() as transaction:
            statement = transaction.sql(self._sql(f"COPY {{s}}.<staging> ({names}) FROM STDIN"))
            with transaction.connection.cursor().copy(statement.encode()) as copy:
                copy.write(block)

    def finish(self) -> int:
        """Everything is staged: add the users, and leave one row a token, in order. Returns how many those are."""
        for first, last in self._pages():
            self._again(partial(self._add_users, first, last))
        with self._database.transaction() as transaction:
            transaction.execute("ANALYZE {s}.users")
            transaction.execute(self._sql("ANALYZE {s}.<staging>"))
            transaction.execute("SELECT set_config('work_mem', '64MB', true)")  # until the transaction's end
            rows = transaction.execute(self._sql(_SORT)).rowcount
            transaction.execute(self._sql("CREATE INDEX ON {s}.<staging>_sorted (n)"))
            transaction.execute(self._sql("ANALYZE {s}.<staging>_sorted"))
            transaction.execute(self._sql("TRUNCATE {s}.<staging>"))
        return max(rows, 0)

    def _add_users(self, first: str, last: str, transaction: Transaction) -> None:
        transaction.execute(self._sql(_ADD_USERS), {"first": first, "last": last})

    def drop(self) -> None:
        """Remove the tables."""
        with self._database.transaction() as transaction:
            transaction.execute(self._sql("DROP TABLE IF EXISTS {s}.<staging>, {s}.<staging>_sorted"))

    def merge(self, first: int, last: int) -> Merged:
        """Merge the rows of these numbers, from 1, in one transaction. The same slice again changes nothing."""
        return self._again(lambda transaction: self._merge(transaction, first, last))

    def _merge(self, transaction: Transaction, first: int, last: int) -> Merged:
        params: dict[str, object] = {
            "app": self._app_id,
            "environment": self._default_environment.value,
            "first": first,
            "last": last,
        }
        tokens, added = transaction.execute(self._sql(_ADD_DEVICES), params).fetchone() or (0, 0)
        if added == tokens:
            return Merged(tokens=tokens, added=added)
        updated, outdated = transaction.execute(self._sql(_UPDATE_DEVICES), params).fetchone() or (0, 0)
        return Merged(tokens=tokens, added=added, updated=updated, outdated=outdated)

    def _pages(self) -> Iterator[tuple[str, str]]:
        with self._database.transaction() as transaction:
            row = transaction.execute(
                "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint",
                [transaction.sql(self._sql("{s}.<staging>"))],
            ).fetchone()
        for page in range(0, row[0] if row else 0, _PAGES):
            yield f"({page},0)", f"({page + _PAGES},0)"

    def _again(self, run: Callable[[Transaction], T]) -> T:
        """Run in a transaction of its own, and again when it met another one."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._database.transaction() as transaction:
                    return run(transaction)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("not reached")

    def _sql(self, text: str) -> str:
        return text.replace("<staging>", self._name)


def analyze(database: Database) -> None:
    """Tell the planner what a large import brought, before the next campaign is cut."""
    with database.transaction() as transaction:
        transaction.execute("ANALYZE {s}.devices")
        transaction.execute("ANALYZE {s}.users")


#: In the middle of an import the planner's statistics are wrong, and one bad plan takes hours. `OFFSET 0` and
#: `app_id + 0` leave it one way to find a device: by its token, in the index.
_ADD_DEVICES = """
WITH added AS (
    INSERT INTO {s}.devices (app_id, token, environment, user_id, locale, timezone, attributes, "authorization",
                             state, state_reason, registered_at, last_seen_at)
    SELECT %(app)s, r.token, coalesce(r.environment, %(environment)s), r.user_id, r.locale, r.timezone, r.attributes,
           coalesce(r."authorization", 'unknown'), r.state,
           CASE WHEN r.state <> 'active' THEN 'imported as ' || r.state END, r.registered_at, r.last_seen_at
    FROM {s}.<staging>_sorted r
    WHERE r.n BETWEEN %(first)s AND %(last)s
      AND NOT EXISTS (SELECT FROM {s}.devices d WHERE d.token = r.token AND d.app_id + 0 = %(app)s OFFSET 0)
    ORDER BY r.n
    ON CONFLICT (token, app_id) DO NOTHING
    RETURNING id, user_id, state, environment
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, new)
    SELECT 'imported', 'import', %(app)s, id, user_id,
           jsonb_build_object('state', state, 'environment', environment)
    FROM added
)
SELECT (SELECT count(*) FROM {s}.<staging>_sorted WHERE n BETWEEN %(first)s AND %(last)s),
       (SELECT count(*) FROM added)
"""

#: A row that is older than the registration we know of says nothing. State and registered_at move only by a newer
#: one (policy.registration); and not at all when somebody else changed the device since this statement began.
_UPDATE_DEVICES = """
WITH pair AS MATERIALIZED (
    SELECT d.id, d.state, d.user_id, d.environment, d.registered_at,
           d.registered_at IS NOT NULL AND r.registered_at < d.registered_at AS outdated,
           CASE WHEN r.registered_at <= coalesce(d.registered_at, d.state_changed_at) OR r.registered_at IS NULL
                THEN d.state
                WHEN r.state = 'active' AND d.state IN ('invalid', 'quarantined')
                THEN CASE WHEN d.blocklisted_until > now() THEN 'blocklisted' ELSE 'active' END
                WHEN r.state IN ('quarantined', 'invalid') AND d.state IN ('active', 'blocklisted') THEN r.state
                ELSE d.state END AS new_state,
           coalesce(r.user_id, d.user_id) AS new_user_id,
           coalesce(r.environment, d.environment) AS new_environment,
           coalesce(r.locale, d.locale) AS new_locale,
           coalesce(r.timezone, d.timezone) AS new_timezone,
           CASE WHEN r.attributes = '{}' THEN d.attributes ELSE d.attributes || r.attributes END AS new_attributes,
           coalesce(r."authorization", d."authorization") AS new_authorization,
           greatest(d.registered_at, r.registered_at) AS new_registered_at,
           greatest(d.last_seen_at, r.last_seen_at) AS new_last_seen_at,
           d.locale, d.timezone, d.attributes, d."authorization", d.last_seen_at
    FROM {s}.<staging>_sorted r
    CROSS JOIN LATERAL (SELECT * FROM {s}.devices WHERE token = r.token AND app_id + 0 = %(app)s OFFSET 0) d
    WHERE r.n BETWEEN %(first)s AND %(last)s
), held AS MATERIALIZED (
    SELECT d.id FROM {s}.devices d JOIN pair p ON p.id = d.id
    WHERE NOT p.outdated
      AND (p.state, p.user_id, p.environment, p.locale, p.timezone, p.attributes, p."authorization",
           p.registered_at, p.last_seen_at)
          IS DISTINCT FROM
          (p.new_state, p.new_user_id, p.new_environment, p.new_locale, p.new_timezone, p.new_attributes,
           p.new_authorization, p.new_registered_at, p.new_last_seen_at)
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET
        user_id = p.new_user_id, environment = p.new_environment, locale = p.new_locale, timezone = p.new_timezone,
        attributes = p.new_attributes, "authorization" = p.new_authorization,
        stale_410_campaign_id = CASE WHEN p.new_registered_at IS NOT DISTINCT FROM p.registered_at
                                     THEN d.stale_410_campaign_id END,
        registered_at = p.new_registered_at, last_seen_at = p.new_last_seen_at,
        state = p.new_state,
        state_reason = CASE WHEN p.new_state = p.state THEN d.state_reason
                            WHEN p.new_state IN ('quarantined', 'invalid') THEN 'imported as ' || p.new_state END,
        state_changed_at = CASE WHEN p.new_state = p.state THEN d.state_changed_at ELSE now() END,
        state_campaign_id = CASE WHEN p.new_state = p.state THEN d.state_campaign_id END
    FROM pair p JOIN held h ON h.id = p.id
    WHERE d.id = p.id AND d.state = p.state AND d.environment = p.environment
      AND d.user_id IS NOT DISTINCT FROM p.user_id AND d.registered_at IS NOT DISTINCT FROM p.registered_at
    RETURNING p.*
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason)
    SELECT kind, 'import', %(app)s, id, whose, old, new, reason FROM (
        SELECT id, 1 AS n, user_id AS whose, 'moved' AS kind, jsonb_build_object('user', user_id) AS old,
               jsonb_build_object('user', new_user_id) AS new, NULL AS reason
        FROM changed WHERE user_id IS DISTINCT FROM new_user_id AND user_id IS NOT NULL
        UNION ALL
        SELECT id, 2, new_user_id, 'moved', jsonb_build_object('user', user_id),
               jsonb_build_object('user', new_user_id), NULL
        FROM changed WHERE user_id IS DISTINCT FROM new_user_id
        UNION ALL
        SELECT id, 3, new_user_id, 'environment_changed', jsonb_build_object('environment', environment),
               jsonb_build_object('environment', new_environment), NULL
        FROM changed WHERE environment <> new_environment
        UNION ALL
        SELECT id, 4, new_user_id,
               CASE new_state WHEN 'quarantined' THEN 'quarantined' WHEN 'invalid' THEN 'invalidated'
                              ELSE 'revived' END,
               jsonb_build_object('state', state), jsonb_build_object('state', new_state),
               CASE WHEN new_state IN ('quarantined', 'invalid') THEN 'imported as ' || new_state END
        FROM changed WHERE state <> new_state
    ) rows ORDER BY id, n
)
SELECT (SELECT count(*) FROM changed), (SELECT count(*) FROM pair WHERE outdated)
"""
