"""Undo of what a campaign, or a reason in a span of time, did to tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sender.errors import InvalidInputError, NotFoundError
from sender.model import Actor
from sender.services import Services
from sender.store import apps, changelog
from sender.store import restore as store
from sender.store.database import Transaction
from sender.store.restore import Place, Scope

#: Called after every step with the devices looked at so far.
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What a restore did, or with `dry_run` would do, in devices."""

    restored: Mapping[str, int]  # by the state that they are in again
    skipped: Mapping[str, int]  # by what happened to them since: a kind of change, "registered" or "forgotten"
    dry_run: bool

    @property
    def total(self) -> int:
        """Devices that were put back."""
        return sum(self.restored.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be undone: what a campaign did, or a reason since a time."""

    campaign: str | None
    reason: str | None
    since: datetime | None
    until: datetime | None
    app: str | None


def restore(
    services: Services, wanted: Wanted, *, dry_run: bool, actor: Actor, progress: Progress | None = None
) -> RestoreReport:
    """Put back what is meant, in steps of some thousand devices. See `Devices.restore`."""
    faults = _faults(wanted)
    if faults:
        raise InvalidInputError("restore", faults)
    with services.database.transaction() as transaction:
        scope = _scope(transaction, wanted)
        end = store.newest_row(transaction)
    restored: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    place: Place | None = Place()
    while place is not None:
        with services.database.transaction() as transaction:
            step = store.step(transaction, scope, place, end=end, actor=actor, dry_run=dry_run)
        restored.update(step.restored)
        skipped.update(step.skipped)
        place = step.place
        if progress is not None:
            progress(restored.total() + skipped.total())
    return RestoreReport(restored=dict(restored), skipped=dict(skipped), dry_run=dry_run)


def _faults(wanted: Wanted) -> list[str]:
    campaign, reason, since, until = wanted.campaign, wanted.reason, wanted.since, wanted.until
    faults = []
    if (campaign is None) == (reason is None):
        faults.append("say what to undo: a campaign, or a reason and since when; one of the two")
    if campaign is not None and any(given is not None for given in (since, until, wanted.app)):
        faults.append("a campaign is undone whole: leave out since, until and app")
    if reason is not None and since is None:
        faults.append("since: say from when on the reason is undone")
    for name, moment in (("since", since), ("until", until)):
        if moment is not None and (not isinstance(moment, datetime) or moment.utcoffset() is None):
            faults.append(f"{name}: must be a datetime with a time zone")
    if not faults and since is not None and until is not None and since >= until:
        faults.append("since is not earlier than until")
    return faults


def _scope(transaction: Transaction, wanted: Wanted) -> Scope:
    if wanted.campaign is not None:
        campaign_id = changelog.campaign_id(transaction, wanted.campaign)
        if campaign_id is None:
            raise NotFoundError("campaign", wanted.campaign, "see `sender campaigns list`")
        return Scope(campaign_id=campaign_id)
    found = None if wanted.app is None else apps.find(transaction, wanted.app)
    if wanted.app is not None and found is None:
        raise NotFoundError("app", wanted.app, "see `sender apps list`")
    app_id = None if found is None else found.id
    return Scope(reason=wanted.reason, since=wanted.since, until=wanted.until, app_id=app_id)
