"""What the public verbs need from outside: settings, the database and a nudge for the workers. All lazy."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

from sender.settings import Settings, load_settings
from sender.store.database import Database


class Services:
    """Settings and connections of one `Sender`, made at first use; safe to share between threads, and after a fork."""

    def __init__(self, settings: Settings | None = None, **overrides: Any) -> None:
        self._given = settings
        self._overrides = overrides
        self._lock = threading.RLock()
        self._database: Database | None = None

    @cached_property
    def settings(self) -> Settings:
        """The settings, read at first use. Raises `ConfigurationError`."""
        if self._given is not None:
            return self._given.model_copy(update=self._overrides) if self._overrides else self._given
        return load_settings(**self._overrides)

    @property
    def database(self) -> Database:
        """The database, not yet connected. Raises `ConfigurationError` when no URL is known."""
        with self._lock:
            if self._database is None:
                self._database = Database(
                    self.settings.require_database_url(),
                    schema=self.settings.database_schema,
                    pool_size=self.settings.database_pool_size,
                )
            return self._database

    def nudge(self) -> None:
        """Tell the control workers that there is something to start. Best effort: the next tick finds it anyway."""
        from sender.nudge import nudge

        nudge(self.settings)

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        with self._lock:
            database, self._database = self._database, None
        if database is not None:
            database.close()
