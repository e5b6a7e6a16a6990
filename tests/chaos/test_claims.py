"""What a claim costs when a batch comes back in the middle of a campaign, whose ledger PostgreSQL has no statistics of:
campaigns are new, and run at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from sender.client import Sender
from sender.store import batches, partitions
from sender.store.database import Database
from tests.integration.campaign_rows import APP, PAYLOAD, add_app, add_batch, add_devices, start

DONE, BATCH = 15_000, 500


@pytest.mark.parametrize("statement", ["_TARGETS", "_SETTLED"])
def test_a_batch_that_comes_back_reads_the_ledger_of_its_own_devices_only(
    database: Database, sender: Sender, statement: str
) -> None:
    with database.transaction() as transaction:
        devices = add_devices(transaction, add_app(transaction), DONE + BATCH)
        transaction.execute("ANALYZE {s}.devices")
    sender.campaigns.enqueue(APP, key="large", payload=PAYLOAD)
    campaign = start(database, "large")
    with database.transaction() as transaction:
        batch = add_batch(transaction, campaign, BATCH, device_ids=devices[DONE:], state="claimed", owner=uuid4())
        transaction.execute(
            "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, outcome) "
            "SELECT %s, %s, unnest(%s::bigint[]), 'sent'",
            (partitions.today(), campaign, devices[:DONE]),
        )
    values = {"ids": devices[DONE:], "campaign": campaign, "started_on": partitions.today(), "batch": batch}
    with database.transaction() as transaction:
        explain = "EXPLAIN (ANALYZE, FORMAT JSON) " + getattr(batches, statement)
        row = transaction.row(explain, values)
    assert row is not None
    read = sum(
        node["Actual Loops"] * (node["Actual Rows"] + node.get("Rows Removed by Filter", 0))
        for node in nodes(row["QUERY PLAN"][0]["Plan"])
        if node.get("Relation Name", "").startswith("deliveries")
    )
    assert read <= BATCH


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)
