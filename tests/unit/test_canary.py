"""What a canary may be asked for, and when its sample stops a campaign."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender import Canary, InvalidInputError
from sender.cli.campaign_options import read_canary
from sender.policy.canary import Sample, is_ready, weigh


def sample(answered: int, **reasons: int) -> Sample:
    return Sample(size=answered, final=answered, answered=answered, reasons=reasons)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"share": 0.1, "count": 5},
        {"share": 0.0},
        {"share": 1.5},
        {"share": float("nan")},
        {"share": True},
        {"count": 0},
        {"count": 1.5},
        {"count": 5, "hold": "yes"},
        {"count": 5, "thresholds": {"BadDeviceToken": 2}},
        {"count": 5, "thresholds": {"Bad Device": 0.5}},
        {"count": 5, "thresholds": [("BadDeviceToken", 0.5)]},
        {"count": 5, "thresholds": {"BadDeviceToken": float("nan")}},
    ],
)
def test_a_canary_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        Canary(**wrong)


def test_a_threshold_for_a_misspelt_reason_is_refused_with_the_one_that_is_meant() -> None:
    for wrong in ("BadDevicetoken", "BadDeviceTokens", "unregistered"):
        with pytest.raises(InvalidInputError, match=r"did you mean (BadDeviceToken|Unregistered)"):
            Canary(share=0.01, thresholds={wrong: 0.02})
    assert Canary(share=0.01, thresholds={"ReasonOfNextYear": 0.02}).thresholds


def test_a_canary_is_the_same_after_it_was_stored() -> None:
    canary = Canary(share=0.01, hold=True, thresholds={"Unregistered": 0.3, "BadDeviceToken": 0})
    assert Canary.from_json({**canary.to_json(), "below": 5, "size": 7, "result": "good"}).to_json() == canary.to_json()


@given(st.floats(0.0001, 1), st.integers(0, 10_000_000))
def test_a_sample_is_never_empty_and_never_more_than_the_audience(share: float, audience: int) -> None:
    assert min(1, audience) <= Canary(share=share).wanted(audience) <= audience


def test_dead_tokens_say_nothing_against_a_campaign_unless_a_threshold_does() -> None:
    half_dead = sample(100, Unregistered=50, ExpiredToken=10)
    assert weigh(half_dead, {}).passed
    assert not weigh(half_dead, {"Unregistered": 0.49}).passed
    assert weigh(half_dead, {"Unregistered": 0.5}).passed


def test_a_tenth_of_any_other_reason_stops_it_but_not_two_devices_of_a_few() -> None:
    assert weigh(sample(100, BadDeviceToken=10), {}).passed
    assert not weigh(sample(100, BadDeviceToken=11), {}).passed
    assert weigh(sample(5, BadDeviceToken=2), {}).passed
    assert not weigh(sample(5, BadDeviceToken=3), {}).passed


def test_a_sample_of_which_nothing_was_accepted_stops_it_however_small_it_is() -> None:
    assert not weigh(sample(1, BadDeviceToken=1), {}).passed
    assert not weigh(sample(2, BadDeviceToken=1, Unregistered=1), {}).passed
    assert weigh(sample(2, Unregistered=2), {}).passed
    assert weigh(sample(2, BadDeviceToken=2), {"BadDeviceToken": 1.0}).passed


def test_a_sample_of_which_nobody_could_be_sent_to_says_nothing_and_stops() -> None:
    verdict = weigh(Sample(size=5, final=5, answered=0, reasons={}), {})
    assert not verdict.passed
    assert verdict.words == "none of the 5 devices of the sample could be sent to"
    assert weigh(Sample(size=0, final=0, answered=0, reasons={}), {}).passed  # an empty audience


def test_a_threshold_that_was_stated_holds_from_the_first_device_on() -> None:
    verdict = weigh(sample(50, BadDeviceToken=1), {"BadDeviceToken": 0.01})
    assert not verdict.passed
    assert verdict.words == "BadDeviceToken 1 of 50 answers (2 %), at most 1 % allowed"


def test_what_waits_counts_where_a_threshold_names_its_reason() -> None:
    throttled = Sample(size=100, final=80, answered=80, reasons={}, waiting={"TooManyRequests": 20})
    assert weigh(throttled, {}).passed
    assert weigh(throttled, {"TooManyRequests": 0.2}).passed
    assert not weigh(throttled, {"TooManyRequests": 0.19}).passed


def test_what_waits_does_not_hold_a_sample_up_but_an_outage_is_no_result() -> None:
    assert is_ready(Sample(size=100, final=50, answered=50, reasons={}))
    assert not is_ready(Sample(size=100, final=49, answered=49, reasons={}))
    assert is_ready(Sample(size=0, final=0, answered=0, reasons={}))


def options(canary: str | None, *, hold: bool = False, most: list[str] | None = None) -> dict[str, Any]:
    return {"canary": canary, "hold": hold, "canary_max": most}


def test_the_options_of_the_command_line_make_a_canary() -> None:
    assert read_canary(options(None)) is None
    assert read_canary(options("1%")) == Canary(share=0.01)
    assert read_canary(options("1,000", hold=True)) == Canary(count=1000, hold=True)
    made = read_canary(options("0.5 %", most=["BadDeviceToken=2%", "Unregistered=40%"]))
    assert made == Canary(share=0.005, thresholds={"BadDeviceToken": 0.02, "Unregistered": 0.4})


@pytest.mark.parametrize(
    "wrong",
    [
        options("one"),
        options("x%"),
        options("0"),
        options("200%"),
        options("1%", most=["BadDeviceToken"]),
        options("1%", most=["BadDeviceToken=0.02"]),
        options("1%", most=["=2%"]),
        options(None, hold=True),
        options(None, most=["BadDeviceToken=2%"]),
    ],
)
def test_options_that_make_no_canary_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        read_canary(wrong)
