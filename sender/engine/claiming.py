"""Taking a batch: claimed, and loaded with everything that must be known before it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from sender.engine.poison import name_error
from sender.engine.preparing import Work
from sender.engine.runtime import Runtime
from sender.store import batches, intents, sending
from sender.store.batches import Claim, Target
from sender.store.database import Transaction
from sender.store.outages import is_outage

log = structlog.get_logger()

#: Seconds before a device that failed before is tried again, while another one is.
TURN = 0.5


def take(runtime: Runtime, batch_id: int) -> Work | None:
    """Claim a batch and load it, with those that other threads want at the same moment; None when it is not there to be
    taken."""
    return runtime.claiming.do(
        batch_id, together=lambda ids: _take_together(runtime, ids), alone=lambda id: _take_alone(runtime, id)
    )


def _take_together(runtime: Runtime, batch_ids: Sequence[int]) -> list[Work | None]:
    """None for those that must be looked at one by one."""
    with runtime.database.transaction(pipelined=True) as transaction:
        claims, targets = batches.claim_together(transaction, batch_ids)
        works = iter(_load(runtime, transaction, [claim for claim in claims if claim is not None], targets))
        return [None if claim is None else next(works) for claim in claims]


def _take_alone(runtime: Runtime, batch_id: int) -> Work | None:
    """As `take`, of one batch that may have to be waited for, put back, or tried while no other is.

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
            return _load(runtime, transaction, [claim], {})[0]
    except Exception as error:
        if not is_outage(error):
            log.exception("claim_broke", batch=batch_id)
            with runtime.database.transaction() as transaction:
                batches.fail_open(transaction, batch_id, error=name_error(error))
        raise


def _load(
    runtime: Runtime, transaction: Transaction, claims: Sequence[Claim], loaded: Mapping[int, Sequence[Target]]
) -> list[Work]:
    """`loaded`: the devices of those batches whose devices are loaded, by batch."""
    app_ids = {claim.campaign.app_id for claim in claims}
    credentials = {app_id: sending.credentials(transaction, app_id) for app_id in app_ids}
    identities = {ref.identity for found in credentials.values() for ref in found.values()}
    holds = runtime.breakers.holds(transaction, sorted(identities)) if identities else {}
    works = []
    for claim in claims:
        targets = loaded.get(claim.batch_id) or batches.targets(transaction, claim)
        work = Work(claim=claim, targets=targets, credentials=credentials[claim.campaign.app_id], holds=holds)
        complete = claim.fresh and len(targets) == len(claim.device_ids)
        works.append(work if complete else _look_back(transaction, work))
    return works


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
