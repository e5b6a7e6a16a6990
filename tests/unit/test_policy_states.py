"""The state machines: closed, reachable, and ending where they should."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.policy.states import (
    APP_MOVES,
    BATCH_MOVES,
    CAMPAIGN_MOVES,
    CANARY_MOVES,
    DEVICE_MOVES,
    AppState,
    BatchState,
    CampaignState,
    CanaryState,
    DeviceState,
    sources,
)

Moves = Mapping[Any, frozenset[Any]]
MACHINES: list[tuple[type[StrEnum], Moves]] = [
    (CampaignState, CAMPAIGN_MOVES),
    (DeviceState, DEVICE_MOVES),
    (BatchState, BATCH_MOVES),
    (AppState, APP_MOVES),
    (CanaryState, CANARY_MOVES),
]
machines = pytest.mark.parametrize(("states", "moves"), MACHINES, ids=[states.__name__ for states, _ in MACHINES])


def reachable(moves: Moves, start: Any) -> set[Any]:
    """Every state that can be reached from `start`, itself included."""
    seen, todo = {start}, [start]
    while todo:
        new = moves[todo.pop()] - seen
        seen |= new
        todo += new
    return seen


@machines
def test_every_state_has_its_row_and_every_move_ends_in_a_state(states: type[StrEnum], moves: Moves) -> None:
    assert set(moves) == set(states)
    assert set().union(*moves.values()) <= set(states)


@machines
def test_no_state_moves_to_itself(states: type[StrEnum], moves: Moves) -> None:
    assert not [state for state in states if state in moves[state]]


@machines
def test_every_state_can_be_reached_from_the_first(states: type[StrEnum], moves: Moves) -> None:
    assert reachable(moves, next(iter(states))) == set(states)


@machines
def test_sources_are_the_inverse_of_the_moves(states: type[StrEnum], moves: Moves) -> None:
    for target in states:
        assert sources(moves, target) == {state for state in states if target in moves[state]}


def test_a_campaign_ends_in_completed_cancelled_failed_or_missed() -> None:
    final = {state for state, targets in CAMPAIGN_MOVES.items() if not targets}
    assert final == {
        CampaignState.COMPLETED,
        CampaignState.CANCELLED,
        CampaignState.FAILED,
        CampaignState.MISSED,
    }


@pytest.mark.parametrize("state", [state for state, targets in CAMPAIGN_MOVES.items() if targets])
def test_every_campaign_that_has_not_ended_can_be_cancelled(state: CampaignState) -> None:
    assert CampaignState.CANCELLED in CAMPAIGN_MOVES[state]


def test_a_campaign_that_ran_is_never_scheduled_again() -> None:
    assert not reachable(CAMPAIGN_MOVES, CampaignState.RUNNING) & {CampaignState.DRAFT, CampaignState.SCHEDULED}


@given(st.sampled_from(list(DeviceState)))
def test_a_device_can_always_become_active_again(state: DeviceState) -> None:
    assert DeviceState.ACTIVE in reachable(DEVICE_MOVES, state)


def test_nothing_quarantines_the_device_of_a_user_who_opted_out() -> None:
    assert DeviceState.QUARANTINED not in DEVICE_MOVES[DeviceState.OPTED_OUT]


def test_quarantine_has_a_way_back_and_a_way_out() -> None:
    assert {DeviceState.ACTIVE, DeviceState.INVALID} <= DEVICE_MOVES[DeviceState.QUARANTINED]


def test_a_canary_ends_in_passed_and_every_other_state_of_it_leads_there() -> None:
    assert [state for state, targets in CANARY_MOVES.items() if not targets] == [CanaryState.PASSED]
    assert all(CanaryState.PASSED in targets for state, targets in CANARY_MOVES.items() if targets)


def test_a_canary_that_was_weighed_is_not_sent_again() -> None:
    assert sources(CANARY_MOVES, CanaryState.SENDING) == set()


def test_a_finished_batch_stays_finished() -> None:
    assert not BATCH_MOVES[BatchState.DONE]
