"""Cut a campaign's audience into batches and publish them, no more at a time than workers take in a second or two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil

from sender.policy.pace import batch_size
from sender.store import cut
from sender.store.cut import Cutting
from sender.store.database import Database

#: Never more open batches of one campaign than this: what Redis holds of it.
MOST_OPEN = 200

#: Never fewer, so that workers find something while the next ones are cut.
LEAST_OPEN = 2

#: Seconds of sending that may be open, at a limited rate.
OPEN_SECONDS = 1.0

#: Device ids looked at, and devices cut, in one transaction at the most.
WINDOW = 400_000
MOST_CUT = 50_000

#: Audiences of at most this many devices do not wait behind campaigns: they go by the priority queue.
PRIORITY_AUDIENCE = 100

#: Seconds that one task cuts before it makes room for other campaigns, and pauses between two looks.
TURN = 10.0
PAUSE = 0.05

Publish = Callable[[str, Sequence[int], bool], None]  # campaign key, batch ids, urgent


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn came to."""

    devices: int
    batches: int
    finished: bool


def cut_campaign(
    database: Database, campaign_id: int, publish: Publish, *, stopped: Callable[[], bool] = lambda: False
) -> Turn:
    """Cut and publish for one turn. Two turns on one campaign at once do no harm: its row is held while it is cut."""
    devices = batches = 0
    end = time.monotonic() + TURN
    while not stopped():
        step = _step(database, campaign_id)
        if step is None:
            return Turn(devices=devices, batches=batches, finished=True)
        cutting, cut_now, ids, full, finished = step
        if ids:
            publish(cutting.key, ids, cutting.audience_estimate <= PRIORITY_AUDIENCE)
        devices += cut_now
        batches += len(ids)
        if finished:
            return Turn(devices=devices, batches=batches, finished=True)
        if time.monotonic() > end:
            break
        if full:
            time.sleep(PAUSE)
    return Turn(devices=devices, batches=batches, finished=False)


def _step(database: Database, campaign_id: int) -> tuple[Cutting, int, list[int], bool, bool] | None:
    """(the cut, devices cut, batches to publish, whether enough is open, whether the cut is finished)."""
    with database.transaction() as transaction:
        cutting = cut.hold(transaction, campaign_id)
        if cutting is None:
            return None
        size = batch_size(cutting.rate, cutting.batch_size)
        room = open_target(cutting.rate, size) - cut.open_batches(transaction, cutting, seconds=TURN / 2)
        devices, finished = 0, cutting.finished
        if room > 0 and not finished:
            wanted = max(1, min(room, MOST_CUT // size))
            devices, finished = cut.cut(transaction, cutting, size=size, batches=wanted, window=WINDOW)
        ids = cut.publishable(transaction, campaign_id, cutting.low_batch_id, most=MOST_OPEN)
    return cutting, devices, ids, room <= 0, finished


def open_target(rate: float | None, size: int) -> int:
    """How many batches of a size may be open at a rate (pushes a second; None: unlimited)."""
    if rate is None:
        return MOST_OPEN
    return max(LEAST_OPEN, min(MOST_OPEN, ceil(rate * OPEN_SECONDS / size)))
