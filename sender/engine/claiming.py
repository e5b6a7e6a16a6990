"""Taking a batch: claimed, and loaded with everything that must be known before it is sent."""

from __future__ import annotations

import structlog

from sender.engine.poison import name_error
from sender.engine.preparing import Work
from sender.engine.runtime import Runtime
from sender.store import batches, intents, sending
from sender.store.batches import Claim
from sender.store.database import Transaction
from sender.store.outages import is_outage

log = structlog.get_logger()

#: Seconds before a device that failed before is tried again, while another one is.
TURN = 0.5


def take(runtime: Runtime, batch_id: int) -> Work | None:
    """Claim a batch and load it; None when it is not there to be taken.

    What cannot be loaded counts as a failure of the batch, so that it does not come again and again.
    """
    try:
        with runtime.database.transaction() as transaction:
            claim = batches.claim(transaction, batch_id)
            if claim is None:
                return None
            if claim.suspect and batches.other_suspect(transaction, claim):
                batches.release(transaction, claim, delay=TURN * runtime.settings.backoff_scale)
                return None
            return _load(runtime, transaction, claim)
    except Exception as error:
        if not is_outage(error):
            log.exception("claim_broke", batch=batch_id)
            with runtime.database.transaction() as transaction:
                batches.fail_open(transaction, batch_id, error=name_error(error))
        raise


def _load(runtime: Runtime, transaction: Transaction, claim: Claim) -> Work:
    targets = batches.targets(transaction, claim)
    credentials = sending.credentials(transaction, claim.campaign.app_id)
    holds = runtime.breakers.holds(transaction, [ref.identity for ref in credentials.values()])
    work = Work(claim=claim, targets=targets, credentials=credentials, holds=holds)
    if claim.fresh and len(targets) == len(claim.device_ids):
        return work
    return _look_back(transaction, work)


def _look_back(transaction: Transaction, work: Work) -> Work:
    """What became of the devices of a batch that was claimed before, or that lost some."""
    claim = work.claim
    settled = batches.settled(transaction, claim)
    doubtful: set[int] = set()
    if claim.campaign.delivery == "at_most_once":
        doubtful = intents.open_of(transaction, claim.campaign.id, claim.device_ids) - settled
    targets = [target for target in work.targets if target.device_id not in doubtful]
    missing = set(claim.device_ids) - settled - doubtful - {target.device_id for target in targets}
    return Work(
        claim=claim,
        targets=targets,
        credentials=work.credentials,
        holds=work.holds,
        missing=missing,
        doubtful=doubtful,
    )
