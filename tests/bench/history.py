"""An installation with years behind it: devices, campaigns of many months with their ledger, batches and changelog.

Written by the server itself. Afterwards the statistics are as autovacuum would have them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta

import psycopg

from sender.store import partitions
from sender.store.database import Database

BIG, SMALL = "com.example.big", "com.example.small"  # apps: of the small one there is a hundredth


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """How much of everything; campaigns go back a month for every `campaigns / months`."""

    devices: int
    campaigns: int
    deliveries: int  # of each campaign; a tenth did not succeed
    months: int
    changes: int

    @property
    def ledger(self) -> int:
        """Rows of the ledger."""
        return self.campaigns * self.deliveries


#: For the tests; for the benchmark.
FEW = History(devices=30_000, campaigns=200, deliveries=500, months=4, changes=30_000)
MANY = History(devices=1_000_000, campaigns=10_000, deliveries=500, months=12, changes=1_000_000)

_APPS = "INSERT INTO {s}.apps (bundle_id) VALUES (%s), (%s)"

_CREDENTIALS = """
INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id)
SELECT a.id, e, 'key', '/nowhere.p8', 'TEAM123456', 'KEY1234567'
FROM {s}.apps a, unnest(ARRAY['production', 'sandbox']) AS e
"""

_USERS = "INSERT INTO {s}.users (external_id) SELECT 'u-' || n FROM generate_series(1, %s) AS n"

_DEVICES = """
INSERT INTO {s}.devices (app_id, token, environment, user_id, attributes, state, state_reason, registered_at)
SELECT CASE WHEN n %% 100 = 0 THEN 2 ELSE 1 END, md5(n::text) || md5('t' || n), 'production',
       1 + n %% greatest(%(devices)s / 2, 1),
       jsonb_build_object('plan', CASE WHEN n %% 100 = 7 THEN 'gold' ELSE 'free' END),
       CASE WHEN n %% 200 = 11 THEN 'quarantined' WHEN n %% 20 = 3 THEN 'invalid' ELSE 'active' END,
       CASE WHEN n %% 200 = 11 THEN 'BadDeviceToken' WHEN n %% 20 = 3 THEN 'Unregistered' END,
       now() - interval '300 days'
FROM generate_series(1, %(devices)s) AS n
"""

#: All but the last ten have finished; those have one open batch each.
_CAMPAIGNS = """
INSERT INTO {s}.campaigns (app_id, key, state, content, payload, push_type, priority, segment, batch_size, expires_in,
    grace, created_at, started_at, started_on, finished_at, expiration, audience_estimate, cut_devices, cut_finished,
    cut_cursor, cut_limit)
SELECT CASE WHEN n %% 50 = 0 THEN 2 ELSE 1 END, 'campaign-' || n,
       CASE WHEN n > %(campaigns)s - 10 THEN 'paused' ELSE 'completed' END,
       '{"key": "x"}', convert_to(repeat('x', 300), 'UTF8'), 'alert', 10, '{"all": true}', 500, 2592000, 3600,
       t, t, t::date, CASE WHEN n <= %(campaigns)s - 10 THEN t + interval '1 hour' END, t + interval '30 days',
       %(deliveries)s, %(deliveries)s, true, %(devices)s, %(devices)s
FROM generate_series(1, %(campaigns)s) AS n,
     LATERAL (SELECT %(first)s::timestamptz + (n - 1) * %(days)s::float8 / %(campaigns)s * interval '1 day' AS t) AS at
"""

_LEDGER = """
INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, at, status, outcome, reason)
SELECT c.started_on, c.id, d, c.started_at, CASE WHEN d %% 10 = 0 THEN 410 ELSE 200 END,
       CASE WHEN d %% 10 = 0 THEN 'rejected' ELSE 'sent' END,
       CASE WHEN d %% 20 = 0 THEN 'Unregistered' WHEN d %% 10 = 0 THEN 'BadDeviceToken' END
FROM {s}.campaigns c,
     LATERAL (SELECT 1 + (c.id * 7919 + n) %% %(devices)s AS d FROM generate_series(1, %(deliveries)s) AS n) AS each
WHERE c.id > %(low)s AND c.id <= %(high)s
"""

_BATCHES = """
INSERT INTO {s}.batches (campaign_id, device_ids, size, state, epoch, sent, rejected, reasons, created_at, finished_at)
SELECT c.id, ARRAY(SELECT generate_series(1, %(size)s)::bigint), %(size)s,
       CASE WHEN c.finished_at IS NULL AND n = 10 THEN 'open' ELSE 'done' END, 1,
       CASE WHEN c.finished_at IS NULL AND n = 10 THEN 0 ELSE %(size)s END, 0, '{"Unregistered": 5}', c.started_at,
       c.finished_at
FROM {s}.campaigns c, generate_series(1, 10) AS n ORDER BY c.id, n
"""

#: As fan-out and sweep leave it: everything below is done.
_LOW = """
UPDATE {s}.campaigns c SET low_batch_id = low.id
FROM (SELECT campaign_id, max(id) AS id FROM {s}.batches WHERE state = 'done' GROUP BY campaign_id) AS low
WHERE low.campaign_id = c.id
"""

_RETRIES = """
INSERT INTO {s}.retries (campaign_id, device_id, due_at, attempts, reason, status)
SELECT c.id, n, now() + interval '1 hour', 1, 'ServiceUnavailable', 503
FROM {s}.campaigns c, generate_series(1, 50) AS n WHERE c.finished_at IS NULL
"""

_CHANGES = """
INSERT INTO {s}.changelog (at, transaction_id, app_id, device_id, user_id, kind, actor, campaign_id, reason)
SELECT %(first)s::timestamptz + n * %(days)s::float8 / %(changes)s * interval '1 day', (3 + n / 100)::text::xid8,
       CASE WHEN n %% 100 = 0 THEN 2 ELSE 1 END, 1 + n * 7919 %% %(devices)s,
       1 + n * 7919 %% greatest(%(devices)s / 2, 1), CASE WHEN n %% 10 = 0 THEN 'invalidated' ELSE 'registered' END,
       'apns', CASE WHEN n %% 10 = 0 THEN 1 + n %% %(campaigns)s END, CASE WHEN n %% 10 = 0 THEN 'Unregistered' END
FROM generate_series(1::bigint, %(changes)s) AS n
"""

_TABLES = ("apps", "users", "devices", "campaigns", "deliveries", "batches", "retries", "changelog")

#: Campaigns whose ledger rows are written in one transaction.
CHUNK = 500


def write(database: Database, history: History) -> None:
    """Write all of it into an empty schema."""
    today = partitions.today()
    first = (today.replace(day=15) - timedelta(days=30 * (history.months - 1))).replace(day=1)
    values = {name: getattr(history, name) for name in history.__slots__}
    values |= {"first": first, "days": (today - first).days, "size": history.deliveries // 10}
    with database.transaction() as transaction:
        for day in _months(first, today):
            partitions.ensure_ledger(transaction, day)
            partitions.ensure_changelog(transaction, day)
        transaction.execute(_APPS, (BIG, SMALL))
        transaction.execute(_CREDENTIALS)
        transaction.execute(_USERS, (max(history.devices // 2, 1),))
        for statement in (_DEVICES, _CAMPAIGNS, _BATCHES, _LOW, _RETRIES, _CHANGES):
            transaction.execute(statement, values)
    for low in range(0, history.campaigns, CHUNK):
        with database.transaction() as transaction:
            transaction.execute(_LEDGER, values | {"low": low, "high": low + CHUNK})
    with psycopg.connect(database.url, autocommit=True) as connection:
        for table in _TABLES:
            connection.execute(f"VACUUM (ANALYZE) {database.schema}.{table}")


def _months(first: date, last: date) -> list[date]:
    found = []
    while first <= last:
        found.append(first)
        first = partitions.month_of(first)[1]
    return found
