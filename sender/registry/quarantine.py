"""Quarantine as a person sees it: who is in it, and letting devices out either way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sender.errors import InvalidInputError, NotFoundError
from sender.model import Actor
from sender.policy.states import DeviceState
from sender.registry.tokens import normalise_prefix, prefix
from sender.services import Services
from sender.store import apps, changelog, inventory
from sender.store import quarantine as store
from sender.store.database import Transaction
from sender.store.quarantine import Quarantined, Which

Leave = Callable[..., int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantine:
    """How many devices are in quarantine for which reason, and those that have been there the longest."""

    by_reason: Mapping[str, int]
    devices: tuple[Quarantined, ...]

    @property
    def total(self) -> int:
        """All of them, listed or not."""
        return sum(self.by_reason.values())


def look(services: Services, *, app: str | None, reason: str | None, campaign: str | None, limit: int) -> Quarantine:
    """Who is in quarantine. Raises `NotFoundError` for an unknown app or campaign."""
    with services.database.transaction() as transaction:
        which = _which(transaction, (), campaign=campaign, app=app, reason=reason)
        return Quarantine(
            by_reason=store.count_by_reason(transaction, which),
            devices=tuple(store.listed(transaction, which, limit=limit)) if limit else (),
        )


def leave(
    services: Services,
    tokens: Sequence[str],
    *,
    campaign: str | None,
    app: str | None,
    confirmed: bool,
    dry_run: bool,
    actor: Actor,
) -> int:
    """Let devices out, released or (`confirmed`) as invalid, in steps; returns how many (`dry_run`: only counts)."""
    if bool(tokens) == (campaign is not None):
        raise InvalidInputError("quarantine", ["say which devices: tokens, or a campaign; one of the two"])
    with services.database.transaction() as transaction:
        which = replace(_which(transaction, tokens, campaign=campaign, app=app), until=store.now(transaction))
        if dry_run:
            return sum(store.count_by_reason(transaction, which).values())
    out: Leave = store.confirm if confirmed else store.release
    moved = 0
    while True:
        with services.database.transaction() as transaction:
            step = out(transaction, which, actor=actor)
        moved += step
        if not step:
            return moved


def _which(
    transaction: Transaction, tokens: Sequence[str], *, campaign: str | None, app: str | None, reason: str | None = None
) -> Which:
    found = None if app is None else apps.find(transaction, app)
    if app is not None and found is None:
        raise NotFoundError("app", app, "see `sender apps list`")
    campaign_id = None if campaign is None else changelog.campaign_id(transaction, campaign)
    if campaign is not None and campaign_id is None:
        raise NotFoundError("campaign", campaign, "see `sender campaigns list`")
    app_id = None if found is None else found.id
    ids = _ids(transaction, tokens, app_id) if tokens else None
    return Which(device_ids=ids, app_id=app_id, campaign_id=campaign_id, reason=reason)


def _ids(transaction: Transaction, tokens: Sequence[str], app_id: int | None) -> tuple[int, ...]:
    """The one device of each token, or of its beginning. Raises `InvalidInputError` with all that are none."""
    ids, faults = [], []
    for token in tokens:
        digits = normalise_prefix(token)
        devices = inventory.by_token(transaction, digits, app_id, most=2)
        if not devices:
            faults.append(f"{prefix(digits)}: no token begins so")
        elif len(devices) > 1:
            faults.append(f"{prefix(digits)}: several devices have a token that begins so: give more of it, or the app")
        elif devices[0].state is not DeviceState.QUARANTINED:
            faults.append(f"{prefix(digits)}: is {devices[0].state}, not quarantined")
        else:
            ids.append(devices[0].id)
    if faults:
        raise InvalidInputError("quarantine", faults)
    return tuple(ids)
