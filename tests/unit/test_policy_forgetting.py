"""What of an audience goes when a person is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender import Segment
from sender.policy.forgetting import NOBODY, is_only_for, with_key, without_user

parts = st.sampled_from(
    [
        Segment.users("anna"),
        Segment.users("anna", "bob"),
        Segment.users("bob"),
        Segment.one_of("user", ["anna"]),
        Segment.language("fr"),
        Segment.all(),
        Segment.not_sent("sale"),
    ]
)
segments = st.recursive(
    parts,
    lambda inner: st.one_of(
        st.builds(lambda a, b: a & b, inner, inner),
        st.builds(lambda a, b: a | b, inner, inner),
        st.builds(lambda a: ~a, inner),
    ),
    max_leaves=8,
)


def named(document: Any) -> list[str]:
    """The users that a segment names."""
    if isinstance(document, dict):
        own = document["user"] if isinstance(document.get("user"), list) else []
        return own + [user for part in document.values() for user in named(part)]
    return [user for part in document for user in named(part)] if isinstance(document, list) else []


@given(segments)
def test_a_segment_without_a_user_names_them_no_more_and_is_a_segment(segment: Segment) -> None:
    rest = without_user(segment.to_json(), "anna")
    assert "anna" not in named(rest)
    assert named(rest).count("bob") == named(segment.to_json()).count("bob")
    Segment.from_json(rest)


@given(segments)
def test_a_segment_that_does_not_name_the_user_stays_as_it_is(segment: Segment) -> None:
    assert without_user(segment.to_json(), "carla") == segment.to_json()


@pytest.mark.parametrize(
    ("segment", "only"),
    [
        (Segment.users("anna"), True),
        (Segment.users("anna") & Segment.language("fr"), True),
        (Segment.users("anna", "bob"), False),
        (Segment.users("anna") | Segment.language("fr"), False),
        (~Segment.users("anna"), False),
        (Segment.all(), False),
        (Segment.one_of("user", ["anna"]), False),
    ],
)
def test_a_message_is_theirs_only_when_it_can_reach_nobody_else(segment: Segment, only: bool) -> None:
    assert is_only_for(segment.to_json(), "anna") is only


def test_a_message_to_two_is_nobodys_when_the_second_is_forgotten() -> None:
    both = (Segment.users("anna") | Segment.users("bob")).to_json()
    assert not is_only_for(both, "anna")
    assert is_only_for(without_user(both, "anna"), "bob")


def test_the_only_user_of_an_audience_leaves_nobody() -> None:
    assert without_user(Segment.users("anna").to_json(), "anna") == NOBODY


def test_references_follow_a_campaign_to_its_new_key() -> None:
    segment = (Segment.language("fr") & ~Segment.not_sent("old")).to_json()
    assert Segment.from_json(with_key(segment, "old", "new")).campaign_keys() == {"new"}
    assert with_key(segment, "other", "new") == segment
