"""Pace: grants and batches are small shares of a second, and never nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.engine.fanout import LEAST_READY, MOST_OPEN, MOST_READY, adapt_ready, is_paced, open_target
from sender.policy.pace import (
    GRANT_SHARE,
    LONGEST_BACK_OFF,
    LONGEST_TURN,
    MOST_LATE,
    back_off,
    batch_size,
    expected_seconds,
    grant_size,
    lateness,
)

rates = st.floats(min_value=0.01, max_value=1e6)
wanted = st.integers(min_value=1, max_value=100_000)


@given(rates, wanted)
def test_a_grant_is_at_least_one_and_at_most_a_twentieth_of_a_second(rate: float, want: int) -> None:
    size = grant_size(rate, want)
    assert 1 <= size <= want
    assert size == 1 or size <= rate * GRANT_SHARE


@given(wanted)
def test_without_a_rate_everything_is_granted(want: int) -> None:
    assert grant_size(None, want) == want
    assert batch_size(None, want) == want


@given(rates, rates, wanted)
def test_a_higher_rate_never_grants_less(one: float, other: float, want: int) -> None:
    assert grant_size(min(one, other), want) <= grant_size(max(one, other), want)


@pytest.mark.parametrize(("rate", "size"), [(1000, 50), (2000, 100), (20, 1), (0.2, 1), (100_000, 500)])
def test_a_batch_of_at_most_500_holds_a_twentieth_of_a_second(rate: float, size: int) -> None:
    assert batch_size(rate, 500) == size


@given(rates)
def test_less_than_a_push_or_a_fortieth_of_a_second_is_forgiven(rate: float) -> None:
    assert 0 < lateness(rate) <= MOST_LATE
    assert lateness(rate) * rate <= max(0.5, 0.025 * rate) + 1e-9


@given(st.floats(min_value=0.001, max_value=100), st.integers(min_value=0, max_value=1000))
def test_backing_off_never_shortens_and_hardly_lengthens_what_is_long(delay: float, tries: int) -> None:
    assert delay <= back_off(delay, tries) <= max(delay, LONGEST_BACK_OFF)
    assert back_off(delay, 1) == delay
    assert back_off(delay, tries) <= back_off(delay, tries, LONGEST_TURN) <= max(delay, LONGEST_TURN)


@pytest.mark.parametrize(
    ("limit", "measured", "seconds"), [(10, None, 10), (10, 5, 20), (10, 50, 10), (None, 50, 2), (10, 0, 10)]
)
def test_what_is_left_takes_as_long_as_the_slower_of_limit_and_measure(
    limit: float | None, measured: float | None, seconds: float
) -> None:
    assert expected_seconds(100, limit=limit, measured=measured) == seconds


def test_without_a_limit_and_a_measure_nothing_is_expected() -> None:
    assert expected_seconds(100, limit=None, measured=None) is None


@given(st.integers(min_value=LEAST_READY, max_value=MOST_READY), st.integers(min_value=0, max_value=MOST_READY))
def test_the_queue_is_kept_longer_only_where_workers_empty_it(ready: int, queued: int) -> None:
    adapted = adapt_ready(ready, queued)
    assert LEAST_READY <= adapted <= MOST_READY
    if queued > ready // 4:
        assert adapted <= ready


@given(rates)
def test_few_batches_are_open_at_a_limited_rate(rate: float) -> None:
    size = batch_size(rate, 500)
    if is_paced(rate, size):
        assert open_target(rate, size) * size <= max(3 * rate + size, 2)
    else:
        assert open_target(rate, size) == MOST_OPEN
