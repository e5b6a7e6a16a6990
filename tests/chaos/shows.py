"""What the guarantees are shown by: rounds whose faults are written down instead of drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.faults import BY_NAME
from tests.chaos.plan import Planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Show:
    """One campaign of a size, with one thing that happens in its middle."""

    name: str
    devices: int
    plan: Sequence[Planned]


def _in_the_middle(fault: str, *, lasts: float = 0.0) -> Sequence[Planned]:
    return (Planned(fault=BY_NAME[fault], share=0.4, patience=60.0, lasts=lasts, seed=fault),)


SHOWS: Sequence[Show] = (
    Show(name="redis flushed", devices=200_000, plan=_in_the_middle("flush broker")),
    Show(name="postgresql away for 20 s", devices=50_000, plan=_in_the_middle("database away", lasts=20.0)),
    Show(name="everything killed", devices=50_000, plan=_in_the_middle("kill everything")),
)
