"""The application's users: what they can be reached on, and what happened."""

from __future__ import annotations

from dataclasses import dataclass

from sender.arguments import check_arguments
from sender.errors import NotFoundError
from sender.model import Actor, Change
from sender.registry import forgetting
from sender.services import Services
from sender.store import changelog, inventory
from sender.store import users as store
from sender.store.changelog import Filter
from sender.store.forget import Forgotten
from sender.store.inventory import Device
from sender.store.users import RecentDelivery

__all__ = ["Forgotten", "RecentDelivery", "User", "Users"]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A user as we know them: devices across apps, newest deliveries first, changelog oldest first."""

    user: str
    devices: tuple[Device, ...]
    deliveries: tuple[RecentDelivery, ...]
    changes: tuple[Change, ...]

    @property
    def pushable_apps(self) -> tuple[str, ...]:
        """The apps in which an alert can reach the user."""
        return tuple(sorted({device.app for device in self.devices if device.pushable}))


@check_arguments()
class Users:
    """People are known by the application's own id."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def show(self, user: str | int, *, most: int = 20) -> User:
        """A user's devices, and at most so many recent deliveries and changelog rows. Raises `NotFoundError`."""
        with self._services.database.transaction() as transaction:
            user_id = store.find(transaction, str(user))
            if user_id is None:
                raise NotFoundError("user", str(user), "users are made by registering or importing a device")
            devices = inventory.of_user(transaction, user_id)
            return User(
                user=str(user),
                devices=tuple(devices),
                deliveries=tuple(store.recent_deliveries(transaction, [device.id for device in devices], most=most)),
                changes=tuple(changelog.latest(transaction, limit=most, only=Filter(user_id=user_id))),
            )

    def forget(self, user: str | int, *, dry_run: bool = False, actor: Actor = Actor.APPLICATION) -> Forgotten:
        """Erase a person for good: devices with their tokens and attributes, the id itself, and what names it in
        audiences; a campaign that was for nobody else loses its message. Surrogate ids and figures stay.

        Leaves one row in the changelog, without personal data. Somebody unknown is no error: `known` says so.
        """
        return forgetting.forget(self._services, user, dry_run=dry_run, actor=actor)
