"""When an error of ours would take a whole batch with it: weighed and recorded a device at a time, so that only what
breaks is lost. Never on the ordinary path."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import structlog

from sender.engine.poison import name_error
from sender.engine.protection.guard import Tally
from sender.engine.results import Results
from sender.model import Answer, Push
from sender.policy.outcomes import INTERNAL_ERROR
from sender.policy.states import Outcome
from sender.policy.verdict import Final
from sender.store.batches import Claim, Target
from sender.store.outages import is_outage

log = structlog.get_logger()

#: One push that was to be issued, with its answer if it was.
Answered: TypeAlias = tuple[Target, Push, Answer | None]

#: Writes a part of a batch's results, in a transaction of its own; returns what was counted.
Write: TypeAlias = Callable[[Results], Mapping[str, int]]


def weigh_apart(claim: Claim, answered: Sequence[Answered], judged: Callable[[Sequence[Answered]], Results]) -> Results:
    """Weigh each answer by itself; the delivery that cannot be weighed ends as failed."""
    whole = Results()
    for one in answered:
        try:
            _merge(whole, judged([one]))
        except Exception as error:
            whole.finals.append(failed(one[0].device_id, attempts=one[0].attempts + 1))
            whole.error = name_error(error)
            log.exception("delivery_failed", campaign=claim.campaign.key, device=one[0].device_id)
    return whole


def record_apart(claim: Claim, results: Results, write: Write) -> tuple[dict[str, int], list[int], str | None]:
    """Record what can be recorded, in halves and halves of halves; a delivery that cannot be recorded ends as failed.

    Returns (what was counted, devices that not even that could be written of, the last error). What stops the whole
    of it, such as a database that is away, is the business of `write`.
    """
    counts: Counter[str] = Counter()
    unwritten: list[int] = []
    last: str | None = None
    parts = [_devices(results)]
    while parts:
        part = parts.pop()
        try:
            counts.update(write(only(results, part)))
        except Exception as error:
            if is_outage(error):
                raise
            last = name_error(error)
            if len(part) > 1:
                parts += [part[: len(part) // 2], part[len(part) // 2 :]]
            elif part:
                log.exception("delivery_failed", campaign=claim.campaign.key, device=part[0])
                counts.update(_write_failed(write, part[0], unwritten))
    return dict(counts), unwritten, last


def _write_failed(write: Write, device_id: int, unwritten: list[int]) -> Mapping[str, int]:
    try:
        return write(Results(finals=[failed(device_id, attempts=1)]))
    except Exception as error:
        if is_outage(error):
            raise
        log.exception("delivery_unrecorded", device=device_id)
        unwritten.append(device_id)
        return {}


def failed(device_id: int, *, attempts: int) -> Final:
    """The end of a delivery that this sender itself fails on."""
    return Final(device_id=device_id, outcome=Outcome.FAILED, reason=INTERNAL_ERROR, attempts=attempts)


def only(results: Results, device_ids: Collection[int]) -> Results:
    """The results of these devices alone, without what concerns the whole batch."""
    wanted = frozenset(device_ids)
    part = Results(guard=results.guard, tallies={environment: Tally() for environment in results.tallies})
    for name, items in _lists(results):
        setattr(part, name, [item for item in items if _device(item) in wanted])
    return part


def _devices(results: Results) -> list[int]:
    return sorted({_device(item) for _, items in _lists(results) for item in items})


def _merge(whole: Results, part: Results) -> None:
    for name, items in _lists(part):
        getattr(whole, name).extend(items)
    for key, value in part.halts.items():
        whole.halts.setdefault(key, value)


def _lists(results: Results) -> list[tuple[str, list[Any]]]:
    """The fields that say something of single devices: lists of ids, or of rows with one."""
    values = [(field.name, getattr(results, field.name)) for field in fields(results)]
    return [(name, value) for name, value in values if isinstance(value, list)]


def _device(item: Any) -> int:
    return item if isinstance(item, int) else int(item.device_id)
