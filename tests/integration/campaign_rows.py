"""Rows that the campaign tests stand on: an app with credentials, devices, and what an engine would have written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sender import Alert, Payload
from sender.store import partitions
from sender.store.database import Database, Transaction

APP = "com.example.news"
PAYLOAD = Payload(alert=Alert(title="Spring sale", body="20 % off today"))


def add_app(transaction: Transaction, *environments: str, bundle_id: str = APP, kind: str = "key") -> int:
    row = transaction.row("INSERT INTO {s}.apps (bundle_id) VALUES (%s) RETURNING id", (bundle_id,))
    assert row is not None
    for environment in environments or ("production", "sandbox"):
        transaction.execute(
            "INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id) "
            "VALUES (%s, %s, %s, '/keys/AuthKey_ABCDEFGHIJ.p8', 'TEAM123456', 'ABCDEFGHIJ')",
            (row["id"], environment, kind),
        )
    return int(row["id"])


def add_device(transaction: Transaction, app_id: int, number: int, *, user: str | None = None, **columns: Any) -> int:
    if user is not None:
        found = transaction.row(
            "INSERT INTO {s}.users (external_id) VALUES (%s) ON CONFLICT (external_id) "
            "DO UPDATE SET external_id = excluded.external_id RETURNING id",
            (user,),
        )
        assert found is not None
        columns["user_id"] = found["id"]
    if "attributes" in columns:
        columns["attributes"] = json.dumps(columns["attributes"])
    values = {"app_id": app_id, "token": f"{number:064x}", "environment": "production"} | columns
    names = ", ".join(f'"{name}"' for name in values)
    marks = ", ".join(f"%({name})s" for name in values)
    row = transaction.row(f"INSERT INTO {{s}}.devices ({names}) VALUES ({marks}) RETURNING id", values)
    assert row is not None
    return int(row["id"])


def add_devices(transaction: Transaction, app_id: int, count: int) -> list[int]:
    rows = transaction.rows(
        "INSERT INTO {s}.devices (app_id, token, environment) "
        "SELECT %s, lpad(to_hex(i), 64, '0'), 'production' FROM generate_series(1, %s) i RETURNING id",
        (app_id, count),
    )
    return [row["id"] for row in rows]


def start(database: Database, key: str, **columns: Any) -> int:
    """The campaign as tick leaves it: running, with its partition of the ledger. Returns its id."""
    values = {"state": "running", "cut_limit": 10**9} | columns
    changes = ", ".join(f"{name} = %({name})s" for name in values)
    with database.transaction() as transaction:
        partitions.ensure_ledger(transaction, partitions.today())
        row = transaction.row(
            f"UPDATE {{s}}.campaigns SET {changes}, started_at = now(), started_on = %(day)s WHERE key = %(key)s "
            "RETURNING id",
            values | {"key": key, "day": partitions.today()},
        )
    assert row is not None
    return int(row["id"])


def add_batch(transaction: Transaction, campaign_id: int, size: int, **columns: Any) -> int:
    reasons: Mapping[str, int] = columns.pop("reasons", {})
    values = {"campaign_id": campaign_id, "size": size, "device_ids": list(range(size)), "state": "done"} | columns
    values["reasons"] = json.dumps(reasons)
    names = ", ".join(values)
    marks = ", ".join(f"%({name})s" for name in values)
    row = transaction.row(f"INSERT INTO {{s}}.batches ({names}) VALUES ({marks}) RETURNING id", values)
    assert row is not None
    return int(row["id"])


def add_delivery(transaction: Transaction, campaign_id: int, device_id: int, outcome: str, **columns: Any) -> None:
    values = {"campaign_id": campaign_id, "device_id": device_id, "outcome": outcome} | columns
    names = ", ".join(values)
    marks = ", ".join(f"%({name})s" for name in values)
    transaction.execute(
        f"INSERT INTO {{s}}.deliveries (campaign_started_on, {names}) VALUES (%(day)s, {marks})",
        values | {"day": partitions.today()},
    )


def add_retry(transaction: Transaction, campaign_id: int, device_id: int, reason: str, status: int = 503) -> None:
    transaction.execute(
        "INSERT INTO {s}.retries (campaign_id, device_id, due_at, attempts, reason, status) "
        "VALUES (%s, %s, now() + interval '1 minute', 1, %s, %s)",
        (campaign_id, device_id, reason, status),
    )
