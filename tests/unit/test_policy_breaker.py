"""What a credential's connections and answers come to, and the arithmetic of openings and paces."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.model import ACCEPTED, Answer, NotProcessed, Rejected, Unknown
from sender.policy.breaker import (
    FINE,
    FLOOR,
    OPEN_FIRST,
    OPEN_LONGEST,
    Signal,
    Tally,
    Verdict,
    clears,
    climb,
    cut,
    judge,
    open_seconds,
    overtaken,
)

paces = st.floats(min_value=FLOOR, max_value=1e6)


def verdict(seen: Tally) -> Verdict:
    return judge(seen, seen).verdict


# --- what opens ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seen",
    [
        Tally(failures=3, down=True, cause="refused the connection"),
        Tally(failures=1, unreachable_for=10.0, cause="did not answer within 10 s"),
        Tally(goaways=3, answered=1000),
        Tally(refused=20),
        Tally(refused=500, answered=20),
        Tally(unanswered=64),
        Tally(judged=100, unavailable=95, answered=100),
        Tally(judged=100, throttled=60, unavailable=40, answered=100),
    ],
    ids=str,
)
def test_a_credential_that_apns_does_not_serve_rests(seen: Tally) -> None:
    assert verdict(seen) is Verdict.OPEN


def test_the_cause_of_an_opening_is_what_the_connection_said() -> None:
    seen = Tally(failures=3, down=True, cause="api.push.apple.com refused the connection")
    assert judge(seen, seen) == Signal(
        verdict=Verdict.OPEN, cause="cannot connect: api.push.apple.com refused the connection"
    )


@pytest.mark.parametrize("cause", ["", "goaway: Shutdown"])
def test_being_without_a_connection_opens_nothing_while_no_attempt_failed(cause: str) -> None:
    assert verdict(Tally(down=True, unreachable_for=60, cause=cause)) is Verdict.FINE


# --- what slows down -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seen",
    [
        Tally(judged=1000, unavailable=300, answered=1000),
        Tally(judged=1000, throttled=200, answered=1000),
        Tally(refused=80, answered=400),
        Tally(limit_falls=1, answered=100),
        Tally(goaways=1, answered=100),
        Tally(lost=2, answered=100),
        Tally(failures=3, answered=100),
        Tally(unanswered=20, answered=100),
    ],
    ids=str,
)
def test_a_credential_in_some_trouble_is_slowed_down(seen: Tally) -> None:
    signal = judge(seen, seen)
    assert signal.verdict is Verdict.SLOW
    assert signal.cause


@pytest.mark.parametrize(
    "seen",
    [
        Tally(),
        Tally(answered=50_000, judged=50_000),
        Tally(judged=4, throttled=4, answered=4),  # too few to say anything
        Tally(judged=1, unavailable=1, answered=1),
        Tally(judged=100, unavailable=12, answered=100),  # one in twenty, on a bad day
        Tally(lost=1, answered=10),
        Tally(failures=1, answered=10),
        Tally(unanswered=3, answered=10_000),
    ],
    ids=str,
)
def test_single_mishaps_change_nothing(seen: Tally) -> None:
    assert judge(seen, seen) == FINE


@given(st.integers(min_value=50, max_value=100_000), st.randoms(use_true_random=False))
def test_one_device_in_a_hundred_throttled_never_counts(answers: int, chance: random.Random) -> None:
    throttled = min(answers // 100, 1 + int(chance.random() * answers / 100))
    assert verdict(Tally(answered=answers, judged=answers, throttled=throttled)) is Verdict.FINE


def test_trouble_of_one_second_counts_among_nine_good_ones() -> None:
    bad = Tally(answered=1000, judged=1000, unavailable=400)
    window = sum((Tally(answered=1000, judged=1000) for _ in range(9)), Tally()) + bad
    assert judge(bad, window).verdict is Verdict.SLOW


def test_trouble_of_a_slow_campaign_adds_up_over_the_window() -> None:
    tick = Tally(answered=2, judged=2, unavailable=1)
    window = sum((tick for _ in range(10)), Tally())
    assert verdict(tick) is Verdict.FINE
    assert judge(tick, window).verdict is Verdict.SLOW


def test_a_sum_of_tallies_is_down_when_the_last_one_was() -> None:
    total = Tally(answered=3, down=True, cause="a") + Tally(answered=4, cause="")
    assert (total.answered, total.down, total.cause) == (7, False, "a")


# --- openings --------------------------------------------------------------------------------------------------------


@given(st.integers(min_value=1, max_value=100), st.floats(min_value=0, max_value=1), st.floats(0.001, 1))
def test_an_opening_lasts_half_to_all_of_its_step(trips: int, chance: float, scale: float) -> None:
    whole = min(OPEN_FIRST * 2 ** (trips - 1), OPEN_LONGEST) * scale
    assert whole / 2 <= open_seconds(trips, chance, scale=scale) <= whole * 1.000001


def test_openings_double_up_to_a_quarter_of_an_hour() -> None:
    assert [open_seconds(trips, 1.0) for trips in (1, 2, 3, 9, 50)] == [5, 10, 20, 900, 900]


@pytest.mark.parametrize(
    ("answer", "closes"),
    [
        (ACCEPTED, True),
        (Rejected(status=410, reason="Unregistered"), True),
        (Rejected(status=400, reason="BadDeviceToken"), True),
        (Rejected(status=429, reason="TooManyRequests"), False),
        (Rejected(status=429, reason="TooManyProviderTokenUpdates"), False),
        (Rejected(status=503, reason="ServiceUnavailable"), False),
        (NotProcessed(cause="refused"), False),
        (Unknown(cause="timeout"), False),
    ],
)
def test_a_probe_closes_the_breaker_when_apns_serves_it(answer: Answer, closes: bool) -> None:
    assert clears(answer) is closes


@pytest.mark.parametrize(
    ("answer", "says_nothing"),
    [
        (NotProcessed(cause="recalled"), True),
        (NotProcessed(cause="closed"), True),
        (Unknown(cause="closed"), True),
        (NotProcessed(cause="goaway: Shutdown"), True),
        (NotProcessed(cause="goaway: NO_ERROR"), True),
        (NotProcessed(cause="goaway: BadCertificate"), False),
        (NotProcessed(cause="goaway: ENHANCE_YOUR_CALM"), False),
        (NotProcessed(cause="connect: goaway: Shutdown"), False),
        (NotProcessed(cause="refused"), False),
        (Unknown(cause="timeout"), False),
        (Unknown(cause="connection lost: closed by the peer"), False),
        (Rejected(status=503, reason="Shutdown"), False),
        (ACCEPTED, False),
    ],
)
def test_a_probe_that_we_took_back_or_an_orderly_goaway_overtook_says_nothing(
    answer: Answer, says_nothing: bool
) -> None:
    assert overtaken(answer) is says_nothing


# --- pace ------------------------------------------------------------------------------------------------------------


@given(paces, paces)
def test_a_cut_halves_the_pace_and_stops_at_the_floor(pace: float, measured: float) -> None:
    cutted = cut(pace, measured)
    assert cutted == max(FLOOR, min(pace, measured) / 2)
    assert cut(None, measured) == max(FLOOR, measured / 2)


@given(paces, st.floats(min_value=2 * FLOOR, max_value=1e6), st.booleans())
def test_a_pace_climbs_until_it_is_back_where_it_fell_from(pace: float, top: float, ramping: bool) -> None:
    now: float | None = min(pace, top)
    for _ in range(60):
        assert now is not None
        raised = climb(now, top, ramping=ramping)
        assert raised is None or now < raised < top
        now = raised
        if now is None:
            return
    pytest.fail("it never came back")


def test_a_pace_climbs_by_equal_steps_after_a_cut_and_doubles_after_a_rest() -> None:
    steps = [climb(pace, 1000, ramping=False) for pace in (100.0, 500.0, 900.0)]
    assert steps == [120, 520, 920]
    assert [climb(pace, 1000, ramping=True) for pace in (10.0, 200.0, 300.0, 990.0)] == [20, 400, 320, None]
