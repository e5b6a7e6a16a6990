"""What a round came to: the simulator's own record beside the ledger. Pure, so that it can be tested itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.chaos.flight import Bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that is known of a campaign once it is over, or was given up."""

    devices: int
    state: str
    finals: Sequence[tuple[str, str]] = field(repr=False)  # (token, outcome) of the ledger
    counted: Mapping[str, int]  # outcome -> by the batches
    audience: int  # by the report
    open_work: int  # batches that are not done, retries, intents
    accepted: Mapping[str, int] = field(repr=False)  # token -> how many notifications its device got, by the simulator
    said_nothing: int = 0  # pushes that the simulator delivered on purpose without an answer
    lost_answers: int = 0  # pushes that it left without one, delivered or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The figures of a round, and what is wrong with them."""

    sent: int
    duplicates: int
    unknown: int
    lost: int
    open: int
    bound: Bound
    faults: tuple[str, ...] = ()  # in words: what was promised and not kept

    @property
    def holds(self) -> bool:
        """Whether everything that is promised was kept."""
        return not self.faults


def judge(evidence: Evidence, bound: Bound, *, at_most_once: bool, failures: Sequence[str] = ()) -> Verdict:
    """Compare the two records. `bound`: what the faults had in flight; `failures`: of the striking itself."""
    outcomes = Counter(outcome for _, outcome in evidence.finals)
    known = {token for token, _ in evidence.finals}
    never_seen = sum(1 for token, outcome in evidence.finals if outcome == "sent" and token not in evidence.accepted)
    lost = evidence.devices - len(known) + never_seen
    duplicates = sum(evidence.accepted.values()) - len(evidence.accepted)
    bound = Bound(
        repeats=0 if at_most_once else bound.repeats + evidence.said_nothing,
        unknown=bound.unknown + evidence.lost_answers if at_most_once else 0,
    )
    wrong = [
        (lost != 0, f"{lost} lost, {never_seen} of them written down as sent and never seen by APNs"),
        (evidence.open_work != 0, f"{evidence.open_work} left open"),
        (evidence.state != "completed", f"the campaign is {evidence.state}"),
        (duplicates > bound.repeats, f"{duplicates} duplicates, at most {bound.repeats} were in flight"),
        (
            outcomes["unknown"] > bound.unknown,
            f"{outcomes['unknown']} unknown, at most {bound.unknown} were open",
        ),
        (len(evidence.finals) != len(known), "a device has more than one final row"),
        (dict(outcomes) != dict(evidence.counted), f"ledger {dict(outcomes)}, counted {dict(evidence.counted)}"),
        (evidence.audience != evidence.devices, f"the report says {evidence.audience} of {evidence.devices} devices"),
        (
            set(outcomes) - {"sent", "unknown"} != set(),
            f"APNs accepts every device, and the ledger says {dict(outcomes)}",
        ),
    ]
    return Verdict(
        sent=outcomes["sent"],
        duplicates=duplicates,
        unknown=outcomes["unknown"],
        lost=lost,
        open=evidence.open_work,
        bound=bound,
        faults=(*failures, *(words for is_wrong, words in wrong if is_wrong)),
    )
