"""Environment healing: when a BadDeviceToken is tried in the other environment, and when a kind of device goes there
straight away. Pure: one `Record` per campaign and stored environment, kept by each worker process, which hears of the
others' probes; time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass

from sender.model import Answer, Rejected
from sender.policy.outcomes import DeliveryStep, Halt, rule_for

#: Probes of all workers together that are made whatever they bring; afterwards at least `WORTH` of them must have
#: succeeded, or only one a `TRICKLE` (seconds) and worker goes on: a table of garbage is no storm at the other host.
FREE_PROBES = 200
WORTH = 0.05
TRICKLE = 1.0

#: Moves after which the rest of that kind goes straight to the other environment, and the share of the recent results
#: of that kind that must have been moves.
MOVES_TO_TURN = 100
TURNED = 0.5

#: Results that are remembered; older ones weigh half, again and again, so that a change in the table is noticed.
MEMORY = 400


@dataclass(slots=True)
class Record:
    """What became of the devices stored in one environment: how many were accepted in the other, and in their own."""

    moves: int = 0  # in all
    moved: float = 0.0  # recently: accepted in the other environment
    results: float = 0.0  # recently: accepted in either, or refused in both
    probes: float = 0.0  # recently: tried in the other environment after a BadDeviceToken in their own
    healed: float = 0.0  # of those, accepted there
    known: int = 0  # probes of all workers in all, as far as this one has heard
    known_moves: int = 0  # and what was accepted in the other environment
    trickled_at: float | None = None

    def note(self, *, moved: int, results: int, probes: int = 0, healed: int = 0) -> None:
        """Take results in."""
        self.moves += moved
        self.moved += moved
        self.results += results
        self.probes += probes
        self.healed += healed
        while self.results > MEMORY:
            self.moved, self.results = self.moved / 2, self.results / 2
        while self.probes > 2 * MEMORY:
            self.probes, self.healed = self.probes / 2, self.healed / 2

    def goes_straight(self) -> bool:
        """Whether devices stored there are sent to the other environment first."""
        return self.moves >= MOVES_TO_TURN and self.moved >= TURNED * self.results

    def allowance(self, wanted: int, *, now: float) -> int:
        """How many of `wanted` probes may be made `now` (seconds)."""
        if self.probes >= FREE_PROBES:
            worth = self.healed >= WORTH * self.probes
        else:
            worth = self.known < FREE_PROBES or self.known_moves >= WORTH * self.known
        if worth:
            return wanted
        if self.trickled_at is not None and now - self.trickled_at < TRICKLE:
            return 0
        self.trickled_at = now
        return min(wanted, 1)


def is_refused(answer: Answer | None) -> bool:
    """Whether an answer is the one that healing is about: the token may belong to the other environment."""
    return type(answer) is Rejected and answer.reason == "BadDeviceToken"


def settle(refusal: Answer, probe: Answer) -> Answer:
    """The answer that counts of a push that was refused with BadDeviceToken and then probed in the other environment.

    Whatever says that the probe may yet succeed there is an answer like any other; a refusal there, and a fault of the
    other environment's credential or of the message, leave the first word standing.
    """
    rule = rule_for(probe)
    if rule.delivery is DeliveryStep.SENT:
        return probe
    if rule.halt is not Halt.NONE or rule.delivery in (DeliveryStep.REJECT, DeliveryStep.FAIL):
        return refusal
    return probe
