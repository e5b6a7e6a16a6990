"""Waiting, after an order to stop, until the workers have noticed it."""

from __future__ import annotations

import time

from sender.store import halts
from sender.store.database import Database
from sender.store.outages import is_outage

#: Seconds that an order waits for the workers: a pause stops new pushes within them.
PATIENCE = 1.0

#: Seconds between two looks. Two in a row must find nothing: a claim that was under way may still have come in between.
_PAUSE = 0.05


def wait_until_halted(
    database: Database, *, campaign_id: int | None = None, app_id: int | None = None, timeout: float = PATIENCE
) -> bool:
    """Wait until no claim of a campaign, or of an app's campaigns, issues anything. False when `timeout` seconds were
    not enough: a worker hangs, or has died and what it held is not taken back yet."""
    end = time.monotonic() + timeout
    quiet = 0
    while True:
        try:
            with database.transaction() as transaction:
                quiet = 0 if halts.issuing(transaction, campaign_id=campaign_id, app_id=app_id) else quiet + 1
        except Exception as error:
            if is_outage(error):  # what was ordered is written down
                return False
            raise
        if quiet == 2:
            return True
        if time.monotonic() >= end:
            return False
        time.sleep(_PAUSE)
