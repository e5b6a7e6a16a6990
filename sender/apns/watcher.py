"""Who owns a wire, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from sender.apns.batch import Slot
from sender.model import Rejected

if TYPE_CHECKING:
    from sender.apns.wire import Wire


class Watcher(Protocol):
    """Whoever owns the wire: what it is told."""

    def wire_settings(self, wire: Wire) -> None:
        """The peer's SETTINGS arrived (each time): the connection works, and the stream limit may be another."""

    def wire_room(self, wire: Wire) -> None:
        """There is room for more requests; or it takes no more, and those in flight are being answered."""

    def wire_rejected(self, wire: Wire, answer: Rejected) -> None:
        """A push was rejected."""

    def wire_refused(self, wire: Wire) -> None:
        """A request was refused by itself, provably not processed (not for a GOAWAY)."""

    def wire_retired(self, wire: Wire, cause: str) -> None:
        """It takes no more requests (GOAWAY, or `retire`); what is in flight may still be answered."""

    def wire_returned(self, wire: Wire, slots: Sequence[Slot]) -> None:
        """These were queued and never written."""

    def wire_lost(self, wire: Wire, cause: str) -> None:
        """The connection is gone."""
