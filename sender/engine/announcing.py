"""At most once: the intention is committed before the push, a slice at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sender.engine.leases import Lease
from sender.engine.preparing import Plan
from sender.engine.runtime import SLICE, Runtime
from sender.store import intents


def announced(runtime: Runtime, lease: Lease, plan: Plan, places: Sequence[int]) -> Iterator[Sequence[int]]:
    """The places of a plan in parts, each of which may be issued when it is given: at once as they are, or, in a
    campaign that is sent at most once, in slices whose intents are committed.

    The next slice is committed while the answers of those before it are under way. Ends early when the claim must stop.
    """
    if lease.claim.campaign.delivery != "at_most_once":
        yield places
        return
    for start in range(0, len(places), SLICE):
        part = places[start : start + SLICE]
        if not lease.may_issue():
            return
        with runtime.database.transaction() as transaction:
            ours = intents.announce(transaction, lease.claim, [plan.targets[at].device_id for at in part])
        if ours:
            yield part if len(ours) == len(part) else [at for at in part if plan.targets[at].device_id in ours]
