"""Cut a campaign's audience into batches and publish them, no more at a time than workers take in a second or two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from sender.policy.pace import batch_size
from sender.store import cut
from sender.store.database import Database

#: Never more open batches of one campaign than this: what Redis holds of it.
MOST_OPEN = 200

#: Never fewer, so that workers find something while the next ones are cut.
LEAST_OPEN = 2

#: How much of a campaign's size is taken from quarantine at its end, if nothing else is set (SENDER_RETEST_SHARE).
RETEST_SHARE = 0.01

#: Seconds of sending that may be open, at a limited rate.
OPEN_SECONDS = 1.0

#: Device ids looked at, and devices cut, in one transaction at the most.
WINDOW = 400_000
MOST_CUT = 50_000

#: Audiences of at most this many devices do not wait behind campaigns: they go by the priority queue.
PRIORITY_AUDIENCE = 100

#: Seconds that one task cuts before it makes room for other campaigns, and pauses between two looks.
TURN = 20.0
PAUSE = 0.05

#: Seconds for which a campaign is reserved for one fan-out; every look renews it.
RESERVED = 5.0

Publish = Callable[[str, Sequence[int], bool], None]  # campaign key, batch ids, urgent


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn came to."""

    devices: int
    batches: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One look: what was cut, what is to be published, whether enough is open, whether the cut is at its end."""

    key: str
    urgent: bool
    devices: int
    publishable: Sequence[int]
    full: bool
    finished: bool


def cut_campaign(
    database: Database,
    campaign_id: int,
    publish: Publish,
    *,
    installation_rate: float | None = None,
    retest_share: float = RETEST_SHARE,
    stopped: Callable[[], bool] = lambda: False,
) -> Turn:
    """Cut and publish for one turn. Two turns on one campaign at once do no harm: its row is held while it is cut."""
    devices = batches = 0
    end = time.monotonic() + TURN
    while not stopped():
        step = _step(database, campaign_id, installation_rate, retest_share)
        if step is None:
            return Turn(devices=devices, batches=batches, finished=True)
        publish_all(database, publish, step.key, step.publishable, step.urgent)
        devices += step.devices
        batches += len(step.publishable)
        if step.finished:
            return Turn(devices=devices, batches=batches, finished=True)
        if time.monotonic() > end:
            break
        if step.full:
            time.sleep(PAUSE)
    with database.transaction() as transaction:
        cut.end_turn(transaction, campaign_id)
    return Turn(devices=devices, batches=batches, finished=False)


def publish_all(database: Database, publish: Publish, key: str, batch_ids: Sequence[int], urgent: bool) -> None:
    """Publish batches that are marked as published; takes the mark back when the broker does not take them."""
    if not batch_ids:
        return
    try:
        publish(key, batch_ids, urgent)
    except Exception:
        with database.transaction() as transaction:
            cut.unpublish(transaction, batch_ids)
        raise


def _step(database: Database, campaign_id: int, installation_rate: float | None, retest_share: float) -> _Step | None:
    with database.transaction() as transaction:
        cutting = cut.hold(transaction, campaign_id, installation_rate=installation_rate)
        if cutting is None:
            return None
        size = batch_size(cutting.rate, cutting.batch_size)
        target = open_target(cutting.rate, size)
        room = target - cut.open_batches(transaction, cutting, seconds=RESERVED)
        full = room < max(1, target // 4)  # a step costs as much for one batch as for fifty
        devices, finished = 0, cutting.finished
        if not full and not finished:
            wanted = max(1, min(room, MOST_CUT // size))
            devices, finished = cut.cut(
                transaction, cutting, size=size, batches=wanted, window=WINDOW, retest_share=retest_share
            )
        ids = cut.publishable(transaction, campaign_id, cutting.low_batch_id, most=MOST_OPEN)
    return _Step(
        key=cutting.key,
        urgent=cutting.audience_estimate <= PRIORITY_AUDIENCE,
        devices=devices,
        publishable=ids,
        full=full,
        finished=finished,
    )


def open_target(rate: float | None, size: int) -> int:
    """How many batches of a size may be open at a rate (pushes a second; None: unlimited)."""
    if rate is None:
        return MOST_OPEN
    return max(LEAST_OPEN, min(MOST_OPEN, ceil(rate * OPEN_SECONDS / size)))
