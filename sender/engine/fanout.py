"""Cut a campaign's audience into batches and publish them, no more at a time than workers take in a moment: what waits
in the queue of one campaign delays all others.

At a limited rate a turn is one look: batches for the next seconds are cut, and each is published when its turn is
near. Without a limit a turn lasts, and keeps so many in the queue that workers find something at every time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from sender.engine.later import Later, Publish
from sender.engine.sharing import Shares
from sender.policy.pace import GRANT_AHEAD, PRIORITY_AUDIENCE, URGENT_AHEAD, batch_size
from sender.policy.sharing import runs_short
from sender.store import cut, publishing
from sender.store.cut import Cutting
from sender.store.database import Database, Transaction
from sender.store.publishing import Open

#: Never more open batches of one campaign than this.
MOST_OPEN = 200

#: Never fewer, so that workers find something while the next ones are cut.
LEAST_OPEN = 2

#: Batches without a limit that wait in the queue: at least, and at most where workers take more between two looks.
LEAST_READY, MOST_READY = 12, MOST_OPEN

#: How much of a campaign's size is taken from quarantine at its end, if nothing else is set (SENDER_RETEST_SHARE).
RETEST_SHARE = 0.01

#: Seconds from which on a batch rests (its credential does, say) and leaves room for others; and how many may.
FAR = 30.0
MOST_RESTING = 2000

#: Seconds of sending that are cut ahead at a limited rate: two ticks, and some.
OPEN_SECONDS = 2.5

#: Batches a second up to which a rate is paced so; above it is treated as if there were no limit.
PACED = 40.0

#: Seconds before its turn at which a batch is published: it then finds its grant within reach.
LEAD = GRANT_AHEAD - 0.03

#: Seconds for which a batch that is marked as published may wait here; the sweep takes it for lost after some more.
LATEST = 3.0

#: Device ids looked at, and devices cut, in one transaction at the most.
WINDOW = 400_000
MOST_CUT = 50_000

#: Seconds that one task cuts before it makes room for other campaigns, and pauses between two looks.
TURN = 20.0
PAUSE = 0.05

#: Turns at once in one process above which each ends as soon as its workers have enough.
CROWD = 8

#: Seconds for which a campaign is reserved for one fan-out; every look renews it.
RESERVED = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one turn came to."""

    devices: int
    batches: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One look: what was cut, what is to be published and when, and whether the turn may end."""

    key: str
    urgent: bool
    devices: int
    publishable: Sequence[tuple[float, int]]  # in how many seconds, batch
    ready: int  # batches that should wait in the queue
    full: bool
    paced: bool  # everything is said for the next seconds
    finished: bool


def cut_campaign(
    database: Database,
    campaign_id: int,
    publish: Publish,
    *,
    later: Later | None = None,
    installation_rate: float | None = None,
    retest_share: float = RETEST_SHARE,
    shares: Shares | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Turn:
    """Cut and publish for one turn. Two turns on one campaign at once do no harm: its row is held while it is cut."""
    devices = batches = 0
    ready: int | None = None
    finished = False
    shares = shares or Shares(database, installation_rate)
    end = time.monotonic() + TURN
    with _crowd.joined() as crowded:
        while not stopped():
            shares.meet(campaign_id)  # before the campaign is held: it takes a connection of its own
            step = _step(database, campaign_id, installation_rate, retest_share, ready=ready, shares=shares)
            if step is None:
                return Turn(devices=devices, batches=batches, finished=True)
            _publish_in_turn(database, publish, later or Later(), step)
            devices += step.devices
            batches += len(step.publishable)
            ready, finished = step.ready, step.finished
            if finished or step.paced or time.monotonic() > end or (step.full and crowded()):
                break
            if step.full:
                time.sleep(PAUSE)
    with database.transaction() as transaction:
        cut.end_turn(transaction, campaign_id)
    return Turn(devices=devices, batches=batches, finished=finished)


class _Crowd:
    """How many turns this process has under way."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    @contextmanager
    def joined(self) -> Iterator[Callable[[], bool]]:
        self._add(1)
        try:
            yield lambda: self._count > CROWD
        finally:
            self._add(-1)

    def _add(self, one: int) -> None:
        with self._lock:
            self._count += one


_crowd = _Crowd()


def _publish_in_turn(database: Database, publish: Publish, later: Later, step: _Step) -> None:
    """Publish what is due, and have the rest published when it is."""
    now = []
    for seconds, batch_id in step.publishable:
        if not 0 < seconds <= LATEST or not later.publish(step.key, [batch_id], seconds=seconds, urgent=step.urgent):
            now.append(batch_id)
    publish_all(database, publish, step.key, now, step.urgent)


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


def _step(
    database: Database,
    campaign_id: int,
    installation_rate: float | None,
    retest_share: float,
    *,
    ready: int | None,
    shares: Shares,
) -> _Step | None:
    with database.transaction() as transaction:
        cutting = cut.hold(transaction, campaign_id, installation_rate=installation_rate)
        if cutting is None:
            return None
        size = batch_size(cutting.rate, cutting.batch_size)
        found = publishing.look(
            transaction,
            campaign_id=campaign_id,
            app_id=cutting.app_id,
            low=cutting.low_batch_id,
            seconds=RESERVED,
            far=max(FAR, 3 / (cutting.rate or 1.0)),
        )
        rate = shares.pace(campaign_id, cutting.rate)
        target = open_target(rate, size)
        short = runs_short(found.batches - found.resting, target, wait=found.shared_wait)
        shares.note(campaign_id, rate, short=short)
        room = target - found.batches + found.resting if found.resting < MOST_RESTING else 0
        paced = is_paced(rate, size)
        full = room < max(1, 1 if paced else target // 4)  # a step costs as much for one batch as for fifty
        wanted = 0 if full or cutting.finished else max(1, min(room, MOST_CUT // size))
        devices, finished = 0, cutting.finished
        if wanted:
            devices, finished = cut.cut(
                transaction, cutting, size=size, batches=wanted, window=WINDOW, retest_share=retest_share
            )
        if paced:
            publishable, left = _pace(transaction, cutting, found, rate or 1.0), False
        else:
            ready = LEAST_READY if ready is None else adapt_ready(ready, found.queued)
            publishable, left = _fill(transaction, cutting, ready - found.queued)
    return _Step(
        key=cutting.key,
        urgent=cutting.audience_estimate <= PRIORITY_AUDIENCE,
        devices=devices,
        publishable=publishable,
        ready=ready or LEAST_READY,
        full=full or finished,
        paced=paced and (finished or devices >= wanted * size),
        finished=finished and not left,
    )


def _pace(transaction: Transaction, cutting: Cutting, found: Open, rate: float) -> list[tuple[float, int]]:
    """The batches of the next seconds, each with the time at which it is published."""
    room = int(rate * OPEN_SECONDS) - found.claimed_devices - found.queued_devices
    least = LEAST_OPEN - found.queued - found.claimed
    batches = publishing.take(
        transaction, cutting.id, cutting.low_batch_id, most=MOST_OPEN, least=max(0, least), devices=max(0, room)
    )
    turn = min(found.wait, 1 / rate + URGENT_AHEAD) + found.queued_devices / rate - LEAD
    times = []
    for batch_id, size in batches:
        times.append((turn, batch_id))
        turn += size / rate
    return times


def _fill(transaction: Transaction, cutting: Cutting, most: int) -> tuple[list[tuple[float, int]], bool]:
    """Batches that are published at once, and whether there may be more."""
    if most <= 0:
        return [], True
    batches = publishing.take(transaction, cutting.id, cutting.low_batch_id, most=most)
    return [(0.0, batch_id) for batch_id, _ in batches], len(batches) == most


def adapt_ready(ready: int, queued: int) -> int:
    """How many batches should wait in the queue, when of `ready` so many are still there: more where workers took
    nearly all of them since the last look, fewer where they took hardly any."""
    if queued <= ready // 4:
        return min(ready * 2, MOST_READY)
    return max(LEAST_READY, ready - ready // 8) if queued > ready * 3 // 4 else ready


def is_paced(rate: float | None, size: int) -> bool:
    """Whether batches of a size can be published one by one at a rate (pushes a second; None: unlimited)."""
    return rate is not None and rate / size <= PACED


def open_target(rate: float | None, size: int) -> int:
    """How many batches of a size may be open at a rate (pushes a second; None: unlimited)."""
    if rate is None or not is_paced(rate, size):
        return MOST_OPEN
    return max(LEAST_OPEN, min(MOST_OPEN, ceil(rate * OPEN_SECONDS / size)))
