"""What is done to a campaign, and when: drawn from a seed, or written down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.faults import FAULTS, Fault

#: The part of a campaign in which faults strike: pushes that APNs has answered, as a share of its devices.
FIRST, LAST = 0.02, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One fault: it strikes when so large a share of the campaign has a result, or so long after the one before."""

    fault: Fault
    share: float
    patience: float  # seconds
    lasts: float  # seconds
    seed: str  # of what it draws itself: which worker, how many streams


def draw(seed: int, *, faults: int) -> Sequence[Planned]:
    """The plan of a round: the same for the same seed. No fault comes twice."""
    chance = Random(f"chaos {seed}")
    left, plan = list(FAULTS), []
    for share in sorted(chance.uniform(FIRST, LAST) for _ in range(faults)):
        fault = chance.choices(left, weights=[each.weight for each in left])[0]
        left.remove(fault)
        plan.append(
            Planned(
                fault=fault,
                share=share,
                patience=chance.uniform(0.5, 3.0),
                lasts=chance.uniform(*fault.lasts),
                seed=f"{seed} {fault.name}",
            )
        )
    return plan
