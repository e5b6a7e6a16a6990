"""A schema at the first migration with an installation in the middle of its work: plain SQL on the columns of that
time, which is never to be adapted to later ones."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import sqlalchemy as sa
from alembic import command
from psycopg import sql

from sender.store import migrate, partitions
from sender.store.database import Transaction, driver_connection

TABLES = (
    "apps",
    "credentials",
    "users",
    "devices",
    "changelog",
    "campaigns",
    "batches",
    "retries",
    "deliveries",
    "limits",
    "workers",
    "pulses",
)

NEWS, REST = 1, 2  # apps; the second one's credential rests
DEVICES = 400  # of the first app; every tenth of them is not pushable any more
DEAD_OWNER = "6f3a3bb0-0000-4000-8000-000000000001"

_APPS = """
INSERT INTO apps (id, bundle_id, rate) VALUES (1, 'com.example.news', NULL), (2, 'com.example.rest', 5000);
INSERT INTO credentials (app_id, environment, kind, file, team_id, key_id) VALUES
    (1, 'production', 'key', '/nowhere.p8', 'TEAM123456', 'KEY1234567'),
    (1, 'sandbox', 'key', '/nowhere.p8', 'TEAM123456', 'KEY1234567'),
    (2, 'production', 'key', '/other.p8', 'TEAM123456', 'KEYOFOTHER');
INSERT INTO users (id, external_id) SELECT n, 'u-' || n FROM generate_series(1, 50) AS n;
INSERT INTO holds (credential, until, cause) VALUES
    ('key:TEAM123456/KEYOFOTHER:production', now() + interval '19 minutes', 'TooManyProviderTokenUpdates: wait'),
    ('key:TEAM123456/KEY1234567:sandbox', now() - interval '1 hour', 'long past');
INSERT INTO limits (scope) VALUES ('installation'), ('app:2'), ('campaign:1');
INSERT INTO workers (id, role, host, pid, version, seen_at) VALUES
    ('6f3a3bb0-0000-4000-8000-0000000000ff', 'campaign', 'old-host', 17, '0.1', now() - interval '5 minutes');
INSERT INTO pulses (name) VALUES ('tick'), ('sweep');
"""

#: In every state that a device can be in; most are active.
_DEVICES = """
INSERT INTO devices (id, app_id, token, environment, user_id, locale, timezone, attributes, state, state_reason,
                     state_campaign_id, blocklisted_until, blocklisted_times, registered_at, last_seen_at)
SELECT n, 1, lpad(to_hex(n), 64, '0'), CASE WHEN n % 7 = 0 THEN 'sandbox' ELSE 'production' END, n % 50 + 1, 'en-US',
       'Europe/Paris', jsonb_build_object('plan', CASE WHEN n % 3 = 0 THEN 'pro' ELSE 'free' END),
       CASE WHEN n % 40 = 10 THEN 'invalid' WHEN n % 40 = 20 THEN 'quarantined' WHEN n % 40 = 30 THEN 'opted_out'
            WHEN n % 40 = 0 THEN 'blocklisted' ELSE 'active' END,
       CASE WHEN n % 40 = 10 THEN 'Unregistered' WHEN n % 40 = 20 THEN 'BadDeviceToken' END,
       CASE WHEN n % 40 IN (10, 20) THEN 1 END,
       CASE WHEN n % 40 = 0 THEN now() - interval '1 second' END, CASE WHEN n % 40 = 0 THEN 2 ELSE 0 END,
       now() - interval '90 days', now() - interval '1 day'
FROM generate_series(1, 400) AS n;
INSERT INTO devices (id, app_id, token, environment) SELECT 1000 + n, 2, lpad(to_hex(n), 64, 'f'), 'production'
FROM generate_series(1, 20) AS n;
INSERT INTO changelog (kind, actor, app_id, device_id, user_id, new)
SELECT 'registered', 'application', app_id, id, user_id, '{"environment": "production"}' FROM devices;
INSERT INTO changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id)
SELECT 'invalidated', 'apns', app_id, id, user_id, '{"state": "active"}', '{"state": "invalid"}', 'Unregistered', 1
FROM devices WHERE state = 'invalid';
SELECT setval(pg_get_serial_sequence('apps', 'id'), 10), setval(pg_get_serial_sequence('users', 'id'), 1000),
       setval(pg_get_serial_sequence('devices', 'id'), 2000);
"""

_CAMPAIGN = """
INSERT INTO campaigns (id, app_id, key, state, content, payload, push_type, priority, collapse_id, segment, rate,
    batch_size, expires_in, grace, started_at, started_on, expiration, finished_at, audience_estimate, cut_cursor,
    cut_limit, cut_finished, cut_devices, low_batch_id, exclusions)
VALUES (%(id)s, %(app)s, %(key)s, %(state)s, %(content)s::jsonb, %(payload)s, 'alert', 10, %(key)s, '{"all": true}',
    %(rate)s, 40, 2592000, 3600, %(started)s, (%(started)s::timestamptz AT TIME ZONE 'UTC')::date,
    %(started)s::timestamptz + interval '30 days', %(finished)s, %(audience)s, %(cursor)s, %(limit)s, %(whole)s,
    %(cut)s, 0, '{"invalid": 10}')
"""

_BATCH = """
INSERT INTO batches (id, campaign_id, kind, device_ids, size, state, epoch, owner, beats, published_at, finished_at,
                     sent, rejected, reasons)
SELECT %(id)s, %(campaign)s, %(kind)s, ids, cardinality(ids), %(state)s, %(epoch)s, %(owner)s, %(beats)s,
       CASE WHEN %(published)s THEN now() - interval '10 minutes' END, CASE WHEN %(state)s = 'done' THEN now() END,
       %(sent)s, %(rejected)s, %(reasons)s::jsonb
FROM (SELECT array_agg(n::bigint) AS ids FROM generate_series(%(first)s::int, %(last)s::int) AS n
      WHERE n %% 10 <> 0 OR n %% 40 = 0) AS cut
"""

_LEDGER = """
INSERT INTO deliveries (campaign_started_on, campaign_id, device_id, status, outcome, reason)
SELECT c.started_on, c.id, n, CASE WHEN n = ANY(%(rejected)s) THEN 410 ELSE 200 END,
       CASE WHEN n = ANY(%(rejected)s) THEN 'rejected' ELSE 'sent' END,
       CASE WHEN n = ANY(%(rejected)s) THEN 'Unregistered' END
FROM campaigns c, generate_series(%(first)s::int, %(last)s::int) AS n
WHERE c.id = %(campaign)s AND (n %% 10 <> 0 OR n %% 40 = 0)
"""


def make(url: str, schema: str) -> None:
    """Migrate a new schema to the first revision, and fill it."""
    with psycopg.connect(url) as connection:
        connection.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(schema)))
    upgrade(url, schema, "0001")
    with psycopg.connect(url) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        connection.execute(_APPS)
        connection.execute(_DEVICES)
        _add_campaigns(connection)
        _add_work(connection)


def upgrade(url: str, schema: str, revision: str) -> None:
    """Migrate a schema as the version did whose newest revision this was."""
    engine = migrate._engine(url)
    with engine.connect() as connection, connection.begin():
        connection.execute(sa.text("SELECT set_config('search_path', :path, true)"), {"path": f'"{schema}"'})
        config = migrate._config(schema)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        partitions.ensure_ahead(Transaction(driver_connection(connection), schema))
    engine.dispose()


def contents(url: str, schema: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table of that time."""
    with psycopg.connect(url) as connection:
        connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        return {
            table: [
                row for (row,) in connection.execute(f"SELECT to_jsonb(t) FROM {table} t ORDER BY to_jsonb(t)::text")
            ]
            for table in TABLES
        }


def _add_campaigns(connection: psycopg.Connection[Any]) -> None:
    """1 finished, 2 running and half cut, 3 paused, 4 of the app that rests; a draft and a scheduled one."""
    plain: dict[str, Any] = {"app": NEWS, "rate": None, "finished": None, "audience": 360, "limit": DEVICES}
    body = json.dumps({"aps": {"alert": {"title": "Hello"}}}).encode()
    for row in (
        {"id": 1, "key": "finished", "state": "completed", "cursor": 400, "whole": True, "cut": 74},
        {"id": 2, "key": "running", "state": "running", "cursor": 240, "whole": False, "cut": 185},
        {"id": 3, "key": "paused", "state": "paused", "cursor": 400, "whole": True, "cut": 37, "rate": 100},
        {"id": 4, "key": "resting", "app": REST, "state": "running", "cursor": 0, "whole": False, "cut": 0},
        {"id": 5, "key": "later", "state": "scheduled", "cursor": 0, "whole": False, "cut": 0, "limit": None},
        {"id": 6, "key": "draft", "state": "draft", "cursor": 0, "whole": False, "cut": 0, "limit": None},
    ):
        started = None if row["id"] >= 5 else "now"
        values = plain | {"content": json.dumps({"key": row["key"]}), "payload": body, "started": started} | row
        connection.execute(_CAMPAIGN, values)
    connection.execute("UPDATE campaigns SET finished_at = now() WHERE id = 1")
    connection.execute("UPDATE campaigns SET cut_limit = 2000 WHERE id = 4")
    connection.execute("UPDATE campaigns SET send_at = now() + interval '1 day' WHERE id = 5")
    connection.execute("SELECT setval(pg_get_serial_sequence('campaigns', 'id'), 100)")


def _add_work(connection: psycopg.Connection[Any]) -> None:
    """Batches in every state. The claimed one is of a worker that died after it had written some of its rows."""
    plain: dict[str, Any] = {"kind": "first", "epoch": 0, "owner": None, "beats": 0, "published": True}
    plain |= {"sent": 0, "rejected": 0, "reasons": "{}"}
    done = {"state": "done", "epoch": 1}
    for row in (
        {"id": 1, "campaign": 1, "first": 1, "last": 40, "sent": 35, "rejected": 2} | done,
        {"id": 2, "campaign": 1, "first": 41, "last": 80, "sent": 37} | done,
        {"id": 3, "campaign": 2, "first": 1, "last": 40, "sent": 35} | done,  # two of it wait in the retries
        {
            "id": 4,
            "campaign": 2,
            "first": 41,
            "last": 80,
            "state": "claimed",
            "epoch": 1,
            "owner": DEAD_OWNER,
            "beats": 9,
        },
        {"id": 5, "campaign": 2, "first": 81, "last": 120, "state": "open"},
        {"id": 6, "campaign": 2, "first": 121, "last": 160, "state": "open", "published": False},
        {"id": 7, "campaign": 2, "first": 161, "last": 200, "sent": 37} | done,
        {"id": 8, "campaign": 2, "first": 201, "last": 240, "state": "open", "published": False, "epoch": 2},
        {"id": 9, "campaign": 3, "first": 1, "last": 40, "state": "open"},
        {"id": 10, "campaign": 2, "kind": "retry", "first": 2, "last": 2, "state": "open"},
    ):
        connection.execute(_BATCH, plain | row)
    connection.execute("""UPDATE batches SET reasons = '{"Unregistered": 2}' WHERE id = 1""")
    connection.execute("UPDATE batches SET sent = 10 WHERE id = 4")
    for campaign, first, last, rejected in ((1, 1, 80, [3, 5]), (2, 3, 40, []), (2, 41, 51, []), (2, 161, 200, [])):
        connection.execute(_LEDGER, {"campaign": campaign, "first": first, "last": last, "rejected": rejected})
    connection.execute(
        "INSERT INTO retries (campaign_id, device_id, due_at, attempts, reason, status, batch_id) VALUES "
        "(2, 1, now() - interval '1 second', 1, 'ServiceUnavailable', 503, NULL), "
        "(2, 2, now() - interval '1 minute', 2, 'InternalServerError', 500, 10)"
    )
    connection.execute("SELECT setval(pg_get_serial_sequence('batches', 'id'), 100)")
