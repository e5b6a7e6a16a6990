"""What a test or a rehearsal may ask of a running simulator: rules, faults at once, and what was received."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from sender.simulator.behaviour import Rule
from sender.simulator.journal import Counters, Received
from sender.simulator.scenario import GoAway, Outage, OutageKind, Scenario, SettingsChange

if TYPE_CHECKING:
    from sender.simulator.connection import ApnsConnection
    from sender.simulator.server import Simulator


class Control:
    """Usable from any thread; every change happens on the simulator's event loop before the call returns."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator

    # --- how it behaves ---------------------------------------------------------------------------------------------

    def set_rules(self, rules: Iterable[Rule]) -> None:
        """Replace the rules."""
        wanted = tuple(rules)
        self._simulator.call(lambda: self._simulator.apns.set_rules(wanted))

    def add_rules(self, rules: Iterable[Rule]) -> None:
        """Add to the rules; of several for a token the last one holds."""
        wanted = tuple(rules)
        self._simulator.call(lambda: self._simulator.apns.add_rules(wanted))

    def set_scenario(self, scenario: Scenario) -> None:
        """Behave like this from now on. SETTINGS, GOAWAY and drops take hold with the next connections."""
        self._simulator.call(lambda: self._simulator.set_scenario(scenario))

    def goaway(
        self, *, reason: str | None = None, debug: str | None = None, error_code: int = 0, close_after_ms: float = 1000
    ) -> int:
        """GOAWAY on every open connection now; returns to how many."""
        goaway = GoAway(
            after_requests=(1, 1), reason=reason, debug=debug, error_code=error_code, close_after_ms=close_after_ms
        )
        return self._on_each(lambda connection: connection.say_goaway(goaway))

    def change_settings(self, change: SettingsChange) -> int:
        """New SETTINGS on every open connection now (when the change says does not matter); returns to how many."""
        return self._on_each(lambda connection: connection.change_settings(change))

    def drop(self) -> int:
        """Cut every open connection; returns how many."""
        return self._on_each(lambda connection: connection.abort())

    def send_raw(self, data: bytes) -> int:
        """Write these bytes, as they are, between two frames on every open connection; returns to how many."""
        return self._on_each(lambda connection: connection.send_raw(data))

    def refuse(self, seconds: float, *, kind: OutageKind = OutageKind.REFUSE, drop: bool = False) -> None:
        """Let connecting fail for a while; `drop` cuts the open connections too."""
        outage = Outage(kind=kind, for_seconds=seconds, drop=drop)
        self._simulator.call(lambda: self._simulator.outages.add(outage))

    def reset(self) -> None:
        """Forget what was received, the counters, the tries of tokens and the provider tokens; rules stay."""
        self._simulator.call(self._simulator.apns.forget)

    def _on_each(self, do: Callable[[ApnsConnection], None]) -> int:
        def run() -> int:
            connections = [connection for connection in self._simulator.connections if connection.open]
            for connection in connections:
                do(connection)
            return len(connections)

        return self._simulator.call(run)

    # --- what it received -------------------------------------------------------------------------------------------

    def counters(self) -> Counters:
        """Figures since the start or the last reset."""
        return self._simulator.call(self._counters)

    def received(self, token: str | None = None) -> Iterator[Received]:
        """What came in, in order: everything, or for one token. Needs record="full"."""
        return self._simulator.journal.received(token)

    def accepted_counts(self) -> dict[str, int]:
        """Token → how many notifications its device gets. Needs record="full" or "counts"."""
        return self._simulator.journal.accepted_counts()

    def expirations(self) -> set[int | None]:
        """Every distinct apns-expiration that came in; None: a request without one."""
        return self._simulator.call(self._simulator.journal.expirations)

    def _counters(self) -> Counters:
        journal = self._simulator.journal
        by_status: dict[int, int] = {}
        by_reason: dict[str, int] = {}
        delivered = 0
        for (status, reason, gets_it), count in zip(journal.outcomes, journal.outcome_counts, strict=True):
            by_status[status] = by_status.get(status, 0) + count
            by_reason[reason] = by_reason.get(reason, 0) + count
            delivered += count if gets_it else 0
        return Counters(
            requests=journal.requests,
            delivered=delivered,
            by_status=by_status,
            by_reason=by_reason,
            connections_opened=journal.connections_opened,
            connections_open=sum(connection.open for connection in self._simulator.connections),
            handshakes_failed=journal.handshakes_failed,
            provider_tokens=self._simulator.apns.providers.distinct,
            per_second=dict(journal.per_second),
            attempts_per_second=dict(journal.attempts_per_second),
        )
