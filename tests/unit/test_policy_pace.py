"""Pace: grants and batches are small shares of a second, and never nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.policy.pace import GRANT_SHARE, batch_size, grant_size

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
