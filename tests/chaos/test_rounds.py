"""A few rounds of `make chaos`, smaller and slower, so that everything that is drawn strikes in their middle."""

from __future__ import annotations

import pytest

from tests.chaos.plan import draw
from tests.chaos.runner import run_round
from tests.chaos.stack import ChaosStack

RATE = 4_000.0
FAULTS = 5


@pytest.mark.parametrize(("delivery", "seed"), [("at_least_once", 14), ("at_most_once", 11)])
def test_a_campaign_under_drawn_faults_loses_nothing_and_repeats_only_what_was_in_flight(
    stack: ChaosStack, delivery: str, seed: int
) -> None:
    done = run_round(
        stack, draw(seed, faults=FAULTS), name=f"round-{delivery}-{seed}", seed=seed, delivery=delivery, rate=RATE
    )
    assert done.struck
    assert done.verdict.faults == (), done.struck
