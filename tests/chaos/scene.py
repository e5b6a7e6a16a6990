"""What a fault strikes at: the stack, the campaign that runs on it, and what was in flight while it struck."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from sender.errors import DatabaseUnavailableError
from tests.chaos.books import Books, Moment
from tests.chaos.stack import ChaosStack


@dataclass(slots=True, kw_only=True)
class Scene:
    """One campaign on one stack, for one fault."""

    stack: ChaosStack
    key: str
    books: Books  # of this fault alone: faults strike at the same time
    before: Moment | None = field(default=None, init=False)
    after: Moment | None = field(default=None, init=False)
    delivered: int | None = field(
        default=None, init=False
    )  # by APNs, until the end of a fault that did harm until then

    def look_before(self) -> None:
        """Note what is in flight, right before the harm is done."""
        self.before = self.books.moment(self.key)

    def look_after(self) -> None:
        """Note what is in flight, right after the harm is done."""
        self.after = self.books.moment(self.key)


def insisting(command: Callable[[], Any], *, within: float = 90.0) -> None:
    """Give a command, again and again while the database is away."""
    end = time.monotonic() + within
    while True:
        try:
            command()
        except (DatabaseUnavailableError, psycopg.OperationalError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return
