"""The chaos runner's own judgement: what must not pass does not pass."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from sender.engine.runtime import SLICE
from tests.chaos.books import Moment
from tests.chaos.faults import FAULTS
from tests.chaos.flight import LARGEST, Bound, Harm, bound_of
from tests.chaos.plan import draw
from tests.chaos.runner import Round
from tests.chaos.stack import THREADS, WORKERS
from tests.chaos.table import head, row
from tests.chaos.verdict import Evidence, judge

DEVICES = 4
GOOD = Evidence(
    devices=DEVICES,
    state="completed",
    finals=[(f"{number:064x}", "sent") for number in range(DEVICES)],
    counted={"sent": DEVICES},
    audience=DEVICES,
    open_work=0,
    accepted={f"{number:064x}": 1 for number in range(DEVICES)},
)
TWICE = GOOD.accepted | {f"{0:064x}": 2}


def moment(*, intents: int = 0, unknown: int = 0, sent: int = 0, **claims: tuple[int, bool, int]) -> Moment:
    return Moment(
        claims={int(name.removeprefix("batch")): claim for name, claim in claims.items()},
        intents=intents,
        unknown=unknown,
        sent=sent,
    )


# --- verdicts -------------------------------------------------------------------------------------------------------


def test_a_round_in_which_everybody_got_one_push_holds() -> None:
    verdict = judge(GOOD, Bound(), at_most_once=False)
    assert verdict.holds
    assert (verdict.sent, verdict.duplicates, verdict.lost, verdict.open) == (DEVICES, 0, 0, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"finals": GOOD.finals[1:], "counted": {"sent": DEVICES - 1}},
        {"accepted": dict.fromkeys(list(GOOD.accepted)[1:], 1)},
        {"open_work": 1},
        {"state": "paused"},
        {"accepted": TWICE},
        {"finals": [*GOOD.finals[1:], (GOOD.finals[0][0], "unknown")], "counted": {"sent": 3, "unknown": 1}},
        {"finals": [*GOOD.finals[1:], (GOOD.finals[0][0], "failed")], "counted": {"sent": 3, "failed": 1}},
        {"counted": {"sent": DEVICES + 1}},
        {"audience": DEVICES - 1},
    ],
    ids=["no final row", "never seen", "open", "paused", "twice", "unknown", "failed", "miscounted", "audience"],
)
@pytest.mark.parametrize("at_most_once", [False, True])
def test_a_round_that_kept_a_promise_less_is_broken(changes: dict[str, object], at_most_once: bool) -> None:
    assert not judge(replace(GOOD, **changes), Bound(), at_most_once=at_most_once).holds


def test_duplicates_hold_up_to_what_was_in_flight_and_never_at_most_once() -> None:
    evidence = replace(GOOD, accepted=TWICE)
    assert judge(evidence, Bound(repeats=1), at_most_once=False).holds
    assert judge(replace(evidence, said_nothing=1), Bound(), at_most_once=False).holds
    assert not judge(evidence, Bound(repeats=1), at_most_once=True).holds


def test_unknown_holds_up_to_the_intents_and_only_at_most_once() -> None:
    finals = [*GOOD.finals[1:], (GOOD.finals[0][0], "unknown")]
    evidence = replace(GOOD, finals=finals, counted={"sent": DEVICES - 1, "unknown": 1})
    assert judge(evidence, Bound(unknown=1), at_most_once=True).holds
    assert not judge(evidence, Bound(unknown=1), at_most_once=False).holds


def test_a_fault_that_could_not_be_struck_breaks_the_round() -> None:
    assert not judge(GOOD, Bound(), at_most_once=False, failures=["kill beat failed"]).holds


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_a_claim_counts_when_it_was_held_before_or_made_in_between() -> None:
    before = moment(batch1=(1, True, 100), batch2=(0, False, 100), batch3=(1, False, 100))
    after = moment(batch1=(1, False, 100), batch2=(1, False, 100), batch3=(1, False, 100), batch4=(2, True, 100))
    assert bound_of(before, after, repeats=Harm.IN_FLIGHT, unknown=Harm.NOTHING) == Bound(repeats=400)


@pytest.mark.parametrize(("harm", "workers"), [(Harm.ONE_WORKER, 1), (Harm.IN_FLIGHT, WORKERS)])
def test_more_than_the_workers_can_hold_is_never_in_flight_at_an_instant(harm: Harm, workers: int) -> None:
    after = moment(batch1=(100, True, LARGEST))
    capacity = workers * THREADS * LARGEST
    assert bound_of(moment(), after, repeats=harm, unknown=Harm.NOTHING).repeats == capacity
    assert bound_of(None, after, repeats=harm, unknown=Harm.NOTHING).repeats == capacity


def test_a_fault_that_goes_on_may_repeat_what_was_delivered_and_not_written_down_before_it() -> None:
    before, after = moment(sent=1_000), moment(batch1=(100, True, LARGEST), sent=1_000)
    few = bound_of(before, after, repeats=Harm.IN_FLIGHT, unknown=Harm.NOTHING, delivered=9_000)
    many = bound_of(before, after, repeats=Harm.IN_FLIGHT, unknown=Harm.NOTHING, delivered=90_000)
    assert (few.repeats, many.repeats) == (8_000, 100 * LARGEST)


def test_a_cut_commit_leaves_no_more_in_doubt_than_a_slice_of_every_thread() -> None:
    after = moment(batch1=(100, True, LARGEST), intents=3_000)
    bound = bound_of(moment(), after, repeats=Harm.NOTHING, unknown=Harm.COMMITS)
    assert bound == Bound(unknown=WORKERS * THREADS * SLICE)


def test_an_intent_counts_while_it_is_open_and_when_it_has_ended_as_unknown() -> None:
    before, after = (
        moment(batch1=(1, True, 500), intents=64, unknown=3),
        moment(batch1=(1, True, 500), intents=60, unknown=5),
    )
    assert bound_of(before, after, repeats=Harm.NOTHING, unknown=Harm.IN_FLIGHT) == Bound(unknown=62)


# --- plans and the table --------------------------------------------------------------------------------------------


def test_a_seed_draws_the_same_plan_again_and_another_one_another() -> None:
    assert draw(1, faults=6) == draw(1, faults=6)
    assert draw(1, faults=6) != draw(2, faults=6)


def test_a_row_of_the_table_has_a_cell_for_every_column() -> None:
    verdict = judge(replace(GOOD, open_work=2), Bound(repeats=1_500), at_most_once=False)
    line = row(Round(label="1", seed=7, delivery="at_least_once", struck=("kill beat",), seconds=1.0, verdict=verdict))
    assert line.count("|") == head().splitlines()[0].count("|")
    assert "0/1,500" in line and "**broken**: 2 left open" in line


def test_every_fault_is_told_in_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "chaos.md").read_text()
    told = re.findall(
        r"^\| ([^|]+) \|.*\|.*\|.*\|$", page.partition("## Faults")[2].partition("\n## ")[0], re.MULTILINE
    )
    assert set(told) - {"Fault"} == {fault.name for fault in FAULTS}
