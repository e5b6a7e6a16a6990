"""Erasing a person's data, as their right is."""

from __future__ import annotations

from sender.errors import InvalidInputError
from sender.model import Actor
from sender.registry.device_fields import check_user
from sender.services import Services
from sender.store import forget as store
from sender.store.forget import Forgotten


def forget(services: Services, user: str | int, *, dry_run: bool, actor: Actor) -> Forgotten:
    """Erase everything of a user, or with `dry_run` only count it. See `Users.forget`."""
    try:
        external_id = check_user(user)
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidInputError("user", [f"user {error}"]) from None
    with services.database.transaction() as transaction:
        return store.forget(transaction, external_id, actor=actor, dry_run=dry_run)
