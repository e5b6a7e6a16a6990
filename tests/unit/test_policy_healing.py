"""When a refused token is probed elsewhere, and when a kind goes there straight away."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sender.model import ACCEPTED, Answer, NotProcessed, Rejected, Unknown
from sender.policy.healing import FREE_PROBES, MOVES_TO_TURN, Record, settle

REFUSAL = Rejected(status=400, reason="BadDeviceToken")


def test_after_a_hundred_moves_the_rest_of_that_kind_goes_straight() -> None:
    record = Record()
    record.note(moved=MOVES_TO_TURN - 1, results=MOVES_TO_TURN - 1)
    assert not record.goes_straight()
    record.note(moved=1, results=1)
    assert record.goes_straight()


def test_a_minority_of_moves_never_turns_a_kind() -> None:
    record = Record()
    for _ in range(100):
        record.note(moved=40, results=100)
    assert not record.goes_straight()


def test_a_turn_is_taken_back_when_the_table_changes() -> None:
    record = Record()
    record.note(moved=2000, results=2000)
    for _ in range(8):
        record.note(moved=0, results=100)
    assert not record.goes_straight()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 10)), max_size=200))
def test_garbage_gets_no_more_probes_than_the_free_ones_and_one_a_second(asked: list[tuple[int, float]]) -> None:
    record, now, probes = Record(), 0.0, 0
    for wanted, pause in asked:
        now += pause
        allowed = record.allowance(wanted, now=now)
        record.note(moved=0, results=wanted, probes=allowed, healed=0)
        probes += allowed
    assert probes < FREE_PROBES + 500 + now + 2


def test_what_all_workers_probed_in_vain_is_not_probed_by_each_of_them() -> None:
    record = Record(known=FREE_PROBES - 1)
    assert record.allowance(50, now=0.0) == 50
    record.known = FREE_PROBES
    assert [record.allowance(50, now=now) for now in (1.0, 1.5, 2.5)] == [1, 0, 1]
    record.known_moves = FREE_PROBES // 2  # it is worth something to others
    assert record.allowance(50, now=3.0) == 50


def test_probes_that_succeed_go_on() -> None:
    record = Record()
    for _ in range(50):
        assert record.allowance(100, now=0.0) == 100
        record.note(moved=6, results=100, probes=100, healed=6)


@pytest.mark.parametrize(
    ("probe", "stands"),
    [
        (ACCEPTED, False),
        (Rejected(status=400, reason="BadDeviceToken"), True),
        (Rejected(status=400, reason="DeviceTokenNotForTopic"), True),
        (Rejected(status=410, reason="Unregistered"), True),
        (Rejected(status=403, reason="BadEnvironmentKeyIdInToken"), True),
        (Rejected(status=413, reason="PayloadTooLarge"), True),
        (Rejected(status=429, reason="TooManyProviderTokenUpdates"), True),
        (Rejected(status=429, reason="TooManyRequests"), False),
        (Rejected(status=503, reason="ServiceUnavailable"), False),
        (NotProcessed(cause="REFUSED_STREAM"), False),
        (Unknown(cause="timeout"), False),
    ],
)
def test_a_refusal_stands_unless_the_probe_succeeds_or_may_yet(probe: Answer, stands: bool) -> None:
    assert settle(REFUSAL, probe) is (REFUSAL if stands else probe)
