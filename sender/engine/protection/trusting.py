"""The good end of a campaign's slow start: what waited for it is let go, and its answers become history."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog

from sender.engine.mishaps import apart
from sender.store import baselines, devices, trials
from sender.store.database import Database, Transaction
from sender.store.devices import Gone
from sender.store.outages import BUSY

log = structlog.get_logger()

#: How long the end of a trial waits for devices that somebody else holds.
LOCKED_FOR = "500ms"


def trust(transaction: Transaction, app_id: int, trial: trials.Trial) -> list[Gone]:
    """End a trial well: its answers are history, and its 410s are returned, for the caller to invalidate their devices
    together with what else it writes to devices."""
    if not trials.trust(transaction, trial.campaign_id, trial.environment):
        return []
    baselines.add(transaction, app_id, {trial.environment: trial.counts})
    return trials.take_staged(transaction, trial.campaign_id, trial.environment)


def trust_ended(database: Database) -> None:
    """End the trials of campaigns whose audience was too small for a verdict: what was not suspicious is trusted. So
    are the 410s that a worker left waiting when it died. What somebody holds is left for the next time: an open
    transaction of the application, say, that has written to one of the devices."""
    with database.transaction() as transaction:
        found, left = trials.ended(transaction), trials.left_behind(transaction)
    for campaign_id, environment in left:
        _end_apart(
            database, campaign_id, partial(trials.apply_staged, campaign_id=campaign_id, environment=environment)
        )
    for app_id, trial in found:
        _end_apart(database, trial.campaign_id, partial(_trust_alone, app_id=app_id, trial=trial))


def _trust_alone(transaction: Transaction, app_id: int, trial: trials.Trial) -> None:
    devices.invalidate(transaction, trust(transaction, app_id, trial), trial.campaign_id)


def _end_apart(database: Database, campaign_id: int, step: Callable[[Transaction], object]) -> None:
    """Take a step that must not keep the sweep from the others."""
    with apart("trial_end_broke", campaign_id=campaign_id):
        try:
            with database.transaction() as transaction:
                transaction.wait_for_locks(LOCKED_FOR)
                step(transaction)
        except BUSY as error:
            log.info("trial_end_deferred", campaign_id=campaign_id, error=type(error).__name__)
