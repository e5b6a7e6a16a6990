"""What an application calls: one `Sender`, a noun per attribute, verbs on the nouns."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sender.services import Services
from sender.settings import Settings

if TYPE_CHECKING:
    from sender.activity import Activity
    from sender.apps import Apps
    from sender.campaigns import Campaigns
    from sender.changelog import Changelog
    from sender.devices import Devices
    from sender.users import Users


class Sender:
    """The sender's public face. Lazy (settings are read and servers reached at first use), thread-safe and fork-safe.

    Settings come from SENDER_* variables, or are passed in: `Sender(database_url="postgresql://…")`.
    """

    def __init__(self, *, settings: Settings | None = None, **overrides: Any) -> None:
        self._services = Services(settings, **overrides)

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._services.settings

    @cached_property
    def apps(self) -> Apps:
        """Apps and their credentials."""
        from sender.apps import Apps

        return Apps(self._services)

    @cached_property
    def devices(self) -> Devices:
        """Devices: register, unregister, opt out, import, count."""
        from sender.devices import Devices

        return Devices(self._services)

    @cached_property
    def users(self) -> Users:
        """The application's users: their devices across apps."""
        from sender.users import Users

        return Users(self._services)

    @cached_property
    def campaigns(self) -> Campaigns:
        """Campaigns: enqueue, show, pause, cancel."""
        from sender.campaigns import Campaigns

        return Campaigns(self._services)

    @cached_property
    def changelog(self) -> Changelog:
        """The push changelog, as a gap-free feed."""
        from sender.changelog import Changelog

        return Changelog(self._services)

    @cached_property
    def activity(self) -> Activity:
        """The message activity log: what became of single deliveries."""
        from sender.activity import Activity

        return Activity(self._services)

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._services.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
