"""What a batch could not send because a breaker opened under it: it waits until the credential may be used again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from sender.engine.preparing import Plan, held_back
from sender.engine.protection.breaker import Breakers
from sender.engine.results import Results
from sender.model import Answer, NotProcessed
from sender.store.batches import Target


def hold_back(
    breakers: Breakers, plan: Plan, answers: Sequence[Answer | None], results: Results, now: datetime
) -> None:
    """Have what is left of a batch wait: the whole of it until the first of its credentials is free again, or, where
    another of its environments can go on at once, in the retries. Nothing is charged."""
    left: dict[str, list[Target]] = {}
    for target, answer in zip(plan.targets, answers, strict=True):
        if answer is None or isinstance(answer, NotProcessed):
            left.setdefault(target.environment, []).append(target)
    rests = {name: breakers.rest(plan.credentials[name].identity) for name in left}
    if not any(rests.values()):
        return
    first = min(rests.values())
    results.rest = max(results.rest, first)
    waiting = set(results.untouched)
    for environment, seconds in rests.items():
        if seconds > first:
            until = now + timedelta(seconds=seconds)
            later = [target for target in left[environment] if target.device_id in waiting]
            results.again += [held_back(target, until) for target in later]
            waiting.difference_update(target.device_id for target in later)
    results.untouched = [device_id for device_id in results.untouched if device_id in waiting]
