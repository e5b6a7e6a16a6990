"""Millions of devices in a table, faster than they could ever be registered: without indexes first."""

from __future__ import annotations

import psycopg

from sender.store.database import Database

#: Devices written in one transaction.
CHUNK = 1_000_000

_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE schemaname = %s AND tablename = 'devices' AND indexname NOT IN ('devices_pkey', 'devices_token_app_id_key')
"""

#: One in a hundred is "gold"; the others are "free".
_DEVICES = """
INSERT INTO {schema}.devices (app_id, token, environment, locale, timezone, attributes, registered_at, last_seen_at)
SELECT {app}, md5({app}::text || n) || md5(n || 'x'), 'production', 'en-US', 'Europe/Paris',
       CASE WHEN n %% 100 = 0 THEN '{{"plan": "gold"}}'::jsonb ELSE '{{"plan": "free"}}'::jsonb END,
       now() - interval '60 days', now()
FROM generate_series(%s::bigint, %s::bigint) AS n
"""


def add_devices(database: Database, app_id: int, count: int) -> None:
    """Write so many devices of an app, one in a hundred of which has the attribute plan = gold."""
    schema = database.schema
    with psycopg.connect(database.url, autocommit=True) as connection:
        indexes = connection.execute(_INDEXES, (schema,)).fetchall()
        for name, _ in indexes:
            connection.execute(f"DROP INDEX {schema}.{name}")
        connection.execute(f"ALTER TABLE {schema}.devices DROP CONSTRAINT devices_token_app_id_key")
        statement = _DEVICES.format(schema=schema, app=app_id)
        for first in range(1, count + 1, CHUNK):
            connection.execute(statement, (first, min(first + CHUNK - 1, count)))
        connection.execute("SET maintenance_work_mem = '512MB'")
        connection.execute(
            f"ALTER TABLE {schema}.devices ADD CONSTRAINT devices_token_app_id_key UNIQUE (token, app_id)"
        )
        for _, definition in indexes:
            connection.execute(definition)
        connection.execute(f"VACUUM (ANALYZE) {schema}.devices")
