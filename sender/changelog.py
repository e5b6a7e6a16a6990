"""The push changelog: every change of a token's state or owner, as a feed without gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sender.arguments import check_arguments
from sender.errors import InvalidInputError, NotFoundError
from sender.model import Change
from sender.registry.tokens import normalise_prefix, prefix
from sender.services import Services
from sender.store import apps, inventory, users
from sender.store import changelog as store
from sender.store.changelog import Filter
from sender.store.database import Transaction

__all__ = ["Change", "Changelog", "Page"]

MOST = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some rows, oldest first. `cursor` is where to go on reading: the one that was given when there are no rows."""

    changes: tuple[Change, ...]
    cursor: str | None

    def __iter__(self) -> Iterator[Change]:
        return iter(self.changes)

    def __len__(self) -> int:
        return len(self.changes)


@check_arguments()
class Changelog:
    """Read the changelog. Filters that are given must all hold."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def read(
        self,
        after: str | None = None,
        limit: int = 1000,
        *,
        user: str | int | None = None,
        device: str | None = None,
        campaign: str | None = None,
        app: str | None = None,
    ) -> Page:
        """The rows after a cursor, from the beginning for None. Keep `page.cursor` with what you made of the rows.

        Rows come once each, in the order of the feed. They come when no older transaction is writing any more, usually
        within milliseconds. A cursor belongs to one PostgreSQL cluster: after a dump and restore begin anew. Raises
        `InvalidInputError` for what is no cursor, `NotFoundError` for an unknown app, user, device or campaign.
        """
        if not 1 <= limit <= MOST:
            raise InvalidInputError("changelog", [f"limit {limit} is not from 1 to {MOST:,}"])
        with self._services.database.transaction() as transaction:
            only = _filter(transaction, user=user, device=device, campaign=campaign, app=app)
            changes = store.read(transaction, after=after, limit=limit, only=only)
        return Page(changes=tuple(changes), cursor=changes[-1].cursor if changes else after)

    def latest(
        self,
        limit: int = 50,
        *,
        user: str | int | None = None,
        device: str | None = None,
        campaign: str | None = None,
        app: str | None = None,
    ) -> list[Change]:
        """The newest rows up to this moment, oldest of them first: for people, and to start a feed at its end.

        A row that an older open transaction may yet put others before has no cursor.
        """
        with self._services.database.transaction() as transaction:
            only = _filter(transaction, user=user, device=device, campaign=campaign, app=app)
            return store.latest(transaction, limit=limit, only=only)


def _filter(
    transaction: Transaction, *, user: str | int | None, device: str | None, campaign: str | None, app: str | None
) -> Filter:
    app_id = user_id = campaign_id = None
    device_ids: tuple[int, ...] | None = None
    if app is not None:
        found = apps.find(transaction, app)
        app_id = _known("app", app, None if found is None else found.id)
    if user is not None:
        user_id = _known("user", str(user), users.find(transaction, str(user)))
    if campaign is not None:
        campaign_id = _known("campaign", campaign, store.campaign_id(transaction, campaign))
    if device is not None:
        device_ids = tuple(
            each.id for each in inventory.by_token(transaction, normalise_prefix(device), None, most=100)
        )
        _known("device", prefix(device), device_ids[0] if device_ids else None)
    return Filter(app_id=app_id, device_ids=device_ids, user_id=user_id, campaign_id=campaign_id)


def _known(what: str, name: str, found: int | None) -> int:
    if found is None:
        raise NotFoundError(what, name)
    return found
