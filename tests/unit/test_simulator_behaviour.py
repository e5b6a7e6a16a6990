"""What a token does is a pure function of the token, the shares and the seed."""

from __future__ import annotations

import tomllib
from collections import Counter
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sender.errors import InvalidInputError
from sender.simulator import Behaviour, Rule, Scenario, Shares, behaviour_of, load_scenario, parse_scenario
from sender.simulator import scenario as scenario_module

TOKENS = [sha256(str(number).encode()).hexdigest() for number in range(20_000)]
SHARES = Shares(unregistered=0.1, bad=0.05, throttled=0.2)


def test_shares_come_out_as_asked_for() -> None:
    counted = Counter(behaviour_of(token, SHARES, seed=4) for token in TOKENS)
    expected = {
        Behaviour.UNREGISTERED: 0.1,
        Behaviour.BAD: 0.05,
        Behaviour.THROTTLED: 0.2,
        Behaviour.ACCEPTED: 0.65,
    }
    assert counted.keys() == expected.keys()
    for behaviour, share in expected.items():
        assert abs(counted[behaviour] / len(TOKENS) - share) < 0.015


def test_a_sequence_of_tokens_is_spread_as_evenly_as_random_ones() -> None:
    counted = Counter(behaviour_of(f"{number:064x}", SHARES) for number in range(20_000))
    assert abs(counted[Behaviour.THROTTLED] / 20_000 - 0.2) < 0.015


def test_another_seed_chooses_other_tokens() -> None:
    chosen = [{token for token in TOKENS if behaviour_of(token, SHARES, seed) is Behaviour.BAD} for seed in (1, 2)]
    assert len(chosen[0] & chosen[1]) < len(chosen[0]) / 4


@given(st.binary(min_size=32, max_size=40), st.integers(0, 2**32))
def test_a_token_behaves_the_same_in_either_case_and_as_text_or_bytes(token: bytes, seed: int) -> None:
    text = token.hex()
    one = behaviour_of(text, SHARES, seed)
    assert one is behaviour_of(text.upper(), SHARES, seed)
    assert one is behaviour_of(text.encode(), SHARES, seed)


@given(st.sampled_from(TOKENS), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_keeps_the_tokens_of_a_smaller_one(token: str, one: float, other: float) -> None:
    chosen = [
        behaviour_of(token, Shares(unregistered=share)) is Behaviour.UNREGISTERED for share in sorted((one, other))
    ]
    assert all(not smaller or larger for smaller, larger in pairwise(chosen))


def test_every_behaviour_has_a_share_of_its_own() -> None:
    for behaviour in Behaviour:
        if behaviour is not Behaviour.ACCEPTED:
            assert behaviour_of(TOKENS[0], Shares.model_validate({behaviour: 1})) is behaviour


def test_shares_may_not_exceed_the_whole() -> None:
    with pytest.raises(ValidationError, match=r"add up to 1\.2"):
        Shares(unregistered=0.7, bad=0.5)


def test_a_rule_must_name_tokens_or_a_prefix() -> None:
    with pytest.raises(ValidationError, match="names its tokens"):
        Rule(behaviour=Behaviour.BAD)


def test_a_rule_about_a_token_that_is_no_hex_shows_no_more_than_its_beginning() -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_scenario({"rules": [{"tokens": ["abcdefghijklmnop"]}]})
    assert "'abcdefgh'…" in str(caught.value)
    assert "abcdefghi" not in str(caught.value)


def test_a_scenario_with_many_faults_names_them_all() -> None:
    wrong = {
        "latency_ms": -1,
        "shares": {"unregistered": 2, "unregisterd": 0.1},
        "goaway": {"after_requests": 3, "above": 2, "unanswered": 2},
        "outages": [{"kind": "refuse", "connections": 3}, {"kind": "reset"}],
        "settings_changes": [{"max_concurrent_streams": 1}],
    }
    with pytest.raises(InvalidInputError) as caught:
        parse_scenario(wrong)
    places = " ".join(caught.value.faults)
    for place in (
        "latency_ms",
        "shares.unregistered:",
        "shares.unregisterd:",
        "goaway: above + unanswered exceed",
        "outages.0: refused connections",
        "outages.1: an outage needs",
        "settings_changes.0: say when",
    ):
        assert place in places


def test_a_scenario_file_is_read_as_toml_or_as_json(tmp_path: Path) -> None:
    toml, json = tmp_path / "bad-day.toml", tmp_path / "bad-day.json"
    toml.write_text('seed = 7\n[shares]\nbad = 0.1\n[goaway]\nafter_requests = [5, 9]\nreason = "Shutdown"\n')
    json.write_text('{"seed": 7, "shares": {"bad": 0.1}, "goaway": {"after_requests": [5, 9], "reason": "Shutdown"}}')
    assert load_scenario(toml) == load_scenario(json)
    assert load_scenario(toml).goaway is not None
    assert load_scenario(toml) != Scenario()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.toml", "seed = ", "is not TOML"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "[1]", "must be an object"),
        ("missing.toml", None, "cannot be read"),
    ],
)
def test_a_scenario_file_that_cannot_be_used_says_why(
    tmp_path: Path, name: str, content: str | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InvalidInputError, match=said):
        load_scenario(path)


def test_the_example_in_the_documentation_is_a_scenario() -> None:
    _, _, example = (scenario_module.__doc__ or "").partition("\n\n")
    parsed = parse_scenario(tomllib.loads(example))
    assert parsed.goaway is not None
    assert (len(parsed.storms), len(parsed.outages), len(parsed.rules)) == (1, 1, 1)
