"""Back-off: bounded, growing, half fixed and half random."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.policy.backoff import (
    BLOCKLIST_FIRST,
    BLOCKLIST_LONGEST,
    MAX_ATTEMPTS,
    RETRY_STEPS,
    blocklist_delay,
    retry_delay,
)

attempts = st.integers(min_value=1, max_value=1000)
chances = st.floats(min_value=0, max_value=1)
scales = st.floats(min_value=0.001, max_value=1)


@given(attempts, chances)
def test_a_retry_waits_between_half_its_step_and_its_step(attempt: int, chance: float) -> None:
    step = RETRY_STEPS[min(attempt, len(RETRY_STEPS)) - 1]
    assert step / 2 <= retry_delay(attempt, chance) <= step


@given(attempts, chances)
def test_a_later_attempt_never_waits_less(attempt: int, chance: float) -> None:
    assert retry_delay(attempt, chance) <= retry_delay(attempt + 1, chance)
    assert blocklist_delay(attempt, chance) <= blocklist_delay(attempt + 1, chance)


@given(attempts, chances, scales)
def test_the_scale_multiplies_every_delay(attempt: int, chance: float, scale: float) -> None:
    assert retry_delay(attempt, chance, scale=scale) == pytest.approx(retry_delay(attempt, chance) * scale)
    assert blocklist_delay(attempt, chance, scale=scale) == pytest.approx(blocklist_delay(attempt, chance) * scale)


@given(st.integers(min_value=-5, max_value=10**9), chances)
def test_a_blocklisting_lasts_from_half_the_first_step_to_a_day(times: int, chance: float) -> None:
    assert BLOCKLIST_FIRST / 2 <= blocklist_delay(times, chance) <= BLOCKLIST_LONGEST


def test_a_blocklisting_starts_at_a_quarter_of_an_hour_and_doubles_up_to_a_day() -> None:
    assert [blocklist_delay(times, 1.0) / 900 for times in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert blocklist_delay(8, 1.0) == 86_400


def test_retries_start_with_a_blip_and_reach_apples_quarter_of_an_hour() -> None:
    assert retry_delay(1, 1.0) == 1
    assert max(RETRY_STEPS) >= 900
    assert len(RETRY_STEPS) < MAX_ATTEMPTS


@given(st.lists(chances, min_size=MAX_ATTEMPTS, max_size=MAX_ATTEMPTS))
def test_all_attempts_together_end_within_a_day(chance: list[float]) -> None:
    assert sum(retry_delay(attempt, each) for attempt, each in enumerate(chance, start=1)) < 86_400
