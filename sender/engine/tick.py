"""The tick: starts campaigns that are due, and finds those that nobody cuts. Two at once do no harm."""

from __future__ import annotations

import json

import structlog

from sender.engine.fanout import RESERVED
from sender.engine.mishaps import apart
from sender.store import canaries, lifecycle, partitions, references, workers
from sender.store.database import Database
from sender.store.lifecycle import Due

log = structlog.get_logger()


def tick(database: Database) -> list[tuple[int, str]]:
    """Start or miss what is due; returns the campaigns to fan out: (id, key) of each."""
    with database.transaction() as transaction:
        workers.pulse(transaction, "tick")
        due = lifecycle.due(transaction)
    for campaign in due:
        with apart("campaign_start_failed", campaign=campaign.key):
            _start(database, campaign)
    with database.transaction() as transaction:
        return lifecycle.take_fanout(transaction, seconds=RESERVED)


def _start(database: Database, campaign: Due) -> None:
    with database.transaction() as transaction:
        if campaign.late:
            if lifecycle.miss(transaction, campaign.id, "its start was missed by more than its grace"):
                log.warning("campaign_missed", campaign=campaign.key)
            return
        partitions.ensure_ledger(transaction, campaign.today)
    with database.transaction() as transaction:
        if not lifecycle.starts_alone(transaction, campaign.id):
            return
        faults = references.faults(transaction, lifecycle.segment_of(transaction, campaign.id))
        if faults:
            if lifecycle.fail(transaction, campaign.id, f"audience: {'; '.join(faults)}"):
                log.error("campaign_refused", campaign=campaign.key, faults=faults)
            return
        count = lifecycle.audience_of(transaction, campaign.id)
        started = lifecycle.start(
            transaction,
            campaign,
            estimate=count.total,
            exclusions=json.dumps(count.excluded),
            canary=canaries.draw(transaction, campaign.id, count.total),
        )
    if started:
        log.info("campaign_started", campaign=campaign.key, audience_estimate=count.total)
