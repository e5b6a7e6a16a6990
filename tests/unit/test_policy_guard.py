"""The guard's rule: what trips it, and that ordinary lists never do."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sender.model import CredentialKind, Environment
from sender.policy.diagnosis import Cause, Evidence, diagnose
from sender.policy.guard import (
    Counts,
    Sign,
    Thresholds,
    Trip,
    Window,
    assess,
    in_doubt,
    least_of,
    may_be_suspicious,
    refused_limit,
)

RULES = Thresholds()
numbers = st.integers(min_value=0, max_value=5000)
counts = st.builds(Counts, accepted=numbers, bad_token=numbers, wrong_topic=numbers, gone=numbers)


# --- no false alarm -------------------------------------------------------------------------------------------------


@given(accepted=numbers, gone=numbers)
def test_410s_alone_never_trip_an_app_without_history(accepted: int, gone: int) -> None:
    for usual in (None, Counts(), Counts(accepted=RULES.history - 1)):
        assert assess(Counts(accepted=accepted, gone=gone), usual, RULES) is None


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(),
    dead=st.sampled_from([0.05, 0.3]),
    bad=st.sampled_from([0.0, 0.01, 0.05]),
    batch=st.sampled_from([1, 7, 100, 500]),
    history=st.booleans(),
)
def test_an_ordinary_list_never_trips_it(seed: int, dead: float, bad: float, batch: int, history: bool) -> None:
    chance = random.Random(seed)
    answers = chance.choices(["gone", "bad", "accepted"], [dead, bad, 1 - dead - bad], k=2000)
    usual = Counts(accepted=970, gone=30) if history else None
    window, trial = Window(RULES.window), Counts()
    for start in range(0, len(answers), batch):
        part = answers[start : start + batch]
        found = Counts(accepted=part.count("accepted"), bad_token=part.count("bad"), gone=part.count("gone"))
        window.add(found)
        trial += found
        assert assess(window.total, usual, RULES) is None
        assert assess(trial, usual, RULES, least=RULES.few) is None
        assert not in_doubt(window.recent(), usual, RULES) or window.recent().gone >= 0.6 * RULES.few


def cut_by_age(chance: random.Random, shares: dict[str, float], count: int) -> list[str]:
    """Answers of devices in the order of their ids: those that came together are about as good or bad as each other."""
    answers: list[str] = []
    while len(answers) < count:
        here = {what: chance.betavariate(10 * share, 10 * (1 - share)) for what, share in shares.items()}
        weights = [*here.values(), max(0.0, 1 - sum(here.values()))]
        answers += chance.choices([*here, "accepted"], weights, k=round(chance.expovariate(1 / 300)) + 1)
    return answers[:count]


@pytest.mark.parametrize(
    ("shares", "usual"),
    [
        ({"gone": 0.05}, None),
        ({"gone": 0.3}, None),
        ({"gone": 0.05}, Counts(accepted=950, gone=50)),
        ({"gone": 0.3}, Counts(accepted=700, gone=300)),
        ({"gone": 0.05, "bad": 0.15}, Counts(accepted=800, gone=50, bad_token=150)),
    ],
)
def test_a_table_that_is_as_bad_as_usual_but_in_clusters_trips_nothing(
    shares: dict[str, float], usual: Counts | None
) -> None:
    for seed in range(10):
        answers = cut_by_age(random.Random(seed), shares, 6000)
        trial, windows = Counts(), [Window(RULES.window) for _ in range(3)]
        for number, start in enumerate(range(0, len(answers), 100)):
            part = answers[start : start + 100]
            found = Counts(accepted=part.count("accepted"), bad_token=part.count("bad"), gone=part.count("gone"))
            if trial.judged < RULES.judged:
                trial += found
                assert assess(trial, usual, RULES, least=RULES.some) is None
            else:
                windows[number % 3].add(found)
                assert assess(windows[number % 3].total, usual, RULES) is None


@given(window=counts, usual=counts)
def test_less_than_the_threshold_never_trips_it(window: Counts, usual: Counts) -> None:
    trip = assess(window, usual, RULES, least=RULES.few)
    if window.judged < RULES.few:
        assert trip is None
    if window.refused < RULES.share * window.judged and window.gone < RULES.gone_share * window.judged:
        assert trip is None


@given(window=counts, usual=st.none() | counts)
def test_nothing_trips_that_was_not_worth_a_look_at_what_is_usual(window: Counts, usual: Counts | None) -> None:
    if assess(window, usual, RULES, least=RULES.few) is not None:
        assert may_be_suspicious(window, RULES)


@given(window=counts)
def test_a_table_that_is_as_bad_as_usual_trips_nothing_below_the_cap(window: Counts) -> None:
    known = window + Counts(accepted=RULES.history)
    share = known.refused / known.judged
    if share * RULES.times >= RULES.most_share and share >= RULES.most_share:
        return  # so much that it trips whatever is usual
    assert assess(known, known, RULES) is None


# --- alarms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "sign"),
    [
        (Counts(bad_token=10), Sign.BAD_TOKEN),
        (Counts(wrong_topic=9, accepted=1), Sign.WRONG_TOPIC),
        (Counts(bad_token=60, accepted=240), Sign.BAD_TOKEN),
        (Counts(bad_token=30, wrong_topic=31, accepted=239), Sign.WRONG_TOPIC),
    ],
)
def test_refused_tokens_trip_it(window: Counts, sign: Sign) -> None:
    trip = assess(window, None, RULES, least=RULES.few)
    assert trip is not None
    assert (trip.sign, trip.usual) == (sign, None)


@pytest.mark.parametrize(
    "window",
    [
        Counts(bad_token=9),
        Counts(bad_token=8, accepted=2),
        Counts(bad_token=59, accepted=241),
        Counts(bad_token=150, accepted=149),  # too few for a share, not almost all
        Counts(bad_token=5, wrong_topic=5),  # not of one and the same
    ],
)
def test_fewer_do_not(window: Counts) -> None:
    assert assess(window, None, RULES, least=RULES.few) is None


@given(st.floats(0, 1))
def test_the_limit_follows_the_usual_share_between_its_bounds(share: float) -> None:
    usual = Counts(accepted=1000 * (1 - share), bad_token=1000 * share)
    limit = refused_limit(usual, RULES)
    assert RULES.share <= limit <= RULES.most_share
    if 0.05 <= share <= 0.11:
        assert limit == pytest.approx(5 * share)


def test_the_beginning_of_a_large_audience_is_judged_by_more_than_a_tiny_audience() -> None:
    assert least_of(40, RULES) == RULES.few
    assert least_of(None, RULES) == least_of(100_000, RULES) == RULES.some
    oldest = Counts(bad_token=30)  # the developers' own devices, say
    assert assess(oldest, None, RULES, least=RULES.some) is None
    assert assess(oldest + oldest, None, RULES, least=RULES.some) is not None
    assert assess(oldest + oldest, None, RULES) is None  # in the middle only shares count


def test_410s_trip_it_far_above_what_is_usual() -> None:
    usual = Counts(accepted=900, gone=100)
    assert assess(Counts(gone=180, accepted=120), usual, RULES) is not None
    assert assess(Counts(gone=179, accepted=121), usual, RULES) is None
    assert assess(Counts(gone=300), usual, RULES, gone_allowed=True) is None  # a person said so
    assert assess(Counts(gone=300), Counts(accepted=790, gone=210), RULES) is None  # not five times
    assert assess(Counts(gone=299), usual, RULES) is None  # too few


# --- the window -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=60), size=st.integers(1, 2000))
def test_a_window_holds_the_newest_answers_and_gives_each_old_one_back_once(sizes: list[int], size: int) -> None:
    window, old = Window(size), Counts()
    for number in sizes:
        old += window.add(Counts(accepted=number))
        assert window.total.judged < size + max(sizes)
    assert window.total.judged >= min(size, sum(sizes))
    assert (old + window.total).judged == sum(sizes)


@settings(deadline=None)
@given(batch=st.integers(1, 500))
def test_a_list_that_turns_bad_trips_a_window_within_hundreds(batch: int) -> None:
    window = Window(RULES.window)
    for _ in range(0, 5000, batch):
        window.add(Counts(accepted=batch))
    bad = 0
    while assess(window.total, None, RULES) is None:
        window.add(Counts(bad_token=batch))
        bad += batch
    assert bad <= 0.2 * RULES.window + 2 * batch


# --- the diagnosis --------------------------------------------------------------------------------------------------


def evidence(**known: object) -> Evidence:
    usual: dict[str, object] = {
        "campaign": "spring",
        "bundle_id": "com.example.news",
        "environment": Environment.PRODUCTION,
        "credential": CredentialKind.KEY,
        "both": True,
        "healing": False,
        "worked": False,
        "replaced": False,
        "other": Counts(),
        "other_worked": False,
        "imported": 0.0,
    }
    return Evidence(**(usual | known))  # type: ignore[arg-type]


BAD = Trip(sign=Sign.BAD_TOKEN, window=Counts(bad_token=480, accepted=20), usual=None)
TOPIC = Trip(sign=Sign.WRONG_TOPIC, window=Counts(wrong_topic=480, accepted=20), usual=0.004)
DEAD = Trip(sign=Sign.GONE, window=Counts(gone=480, accepted=20), usual=0.04)


@pytest.mark.parametrize(
    ("trip", "known", "cause", "words"),
    [
        (BAD, {}, Cause.WRONG_ENVIRONMENT, "these look like tokens of sandbox"),
        (BAD, {"other_worked": True}, Cause.WRONG_ENVIRONMENT, "but pushes of this app are in sandbox"),
        (BAD, {"worked": True, "replaced": True}, Cause.WRONG_ENVIRONMENT, "until the credential was replaced"),
        (BAD, {"imported": 1.0}, Cause.IMPORTED_ENVIRONMENT, "100% of the refused tokens came out of a file"),
        (BAD, {"worked": True}, Cause.REGISTERED_ENVIRONMENT, "builds run from Xcode have sandbox tokens"),
        (TOPIC, {}, Cause.WRONG_BUNDLE_ID, "another bundle id, or the key belongs to another team"),
        (TOPIC, {"credential": CredentialKind.CERTIFICATE}, Cause.OTHER_CREDENTIAL, "than the certificate serves"),
        (TOPIC, {"worked": True, "replaced": True}, Cause.OTHER_CREDENTIAL, "until the credential was replaced"),
        (TOPIC, {"worked": True, "imported": 0.9}, Cause.OTHER_TOKENS, "came out of a file that is not this one"),
        (DEAD, {"worked": True}, Cause.OLD_TOKENS, "not sent to for a long time"),
    ],
)
def test_a_diagnosis_names_cause_figures_and_what_to_do(
    trip: Trip, known: dict[str, object], cause: Cause, words: str
) -> None:
    found = diagnose(trip, evidence(**known))
    assert found.cause is cause
    assert words in found.text
    assert "480 of 500 answers in production" in found.text
    assert "Nothing was invalidated." in found.text
    assert "sender campaigns resume spring" in found.text


def test_healing_is_offered_where_it_can_be_had() -> None:
    offer = "sender apps heal com.example.news on"
    assert offer in diagnose(BAD, evidence()).text
    assert offer not in diagnose(BAD, evidence(both=False)).text
    assert offer not in diagnose(BAD, evidence(healing=True)).text
