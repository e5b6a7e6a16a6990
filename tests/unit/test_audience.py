"""Segments as values, as JSON, and as `--where` conditions."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sender import InvalidSegmentError, Segment
from sender.audience import Compare, Everyone, Not, OneOf, parse_where
from sender.audience.where import parse_all

NAMES = st.text("abcdefgé_-.", min_size=1, max_size=8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(-1e9, 1e9)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
)
MOMENTS = st.datetimes(timezones=st.just(UTC)) | st.timedeltas(timedelta(0), timedelta(days=999))
LEAVES = (
    st.just(Segment.all())
    | st.builds(lambda name, values: Segment.one_of(name, values), NAMES, st.lists(SCALARS, min_size=1, max_size=4))
    | st.builds(Segment.compare, NAMES, st.sampled_from(["<", "<=", ">", ">="]), st.integers(-99, 99) | NAMES)
    | st.builds(Segment.contains, NAMES, SCALARS)
    | st.builds(lambda names: Segment.locale(*names), st.lists(NAMES, min_size=1, max_size=3))
    | st.builds(lambda names: Segment.users(*names), st.lists(NAMES, min_size=1, max_size=3))
    | st.builds(lambda moment: Segment.last_seen(after=moment), MOMENTS)
    | st.builds(lambda moment: Segment.registered(before=moment), MOMENTS)
    | st.builds(Segment.percentage, st.floats(0, 100), NAMES)
    | st.builds(Segment.not_sent, NAMES)
)
SEGMENTS = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(lambda a, b: a & b, inner, inner)
        | st.builds(lambda a, b: a | b, inner, inner)
        | st.builds(lambda a: ~a, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(SEGMENTS)
def test_a_segment_survives_a_round_trip_through_json(segment: Segment) -> None:
    text = json.dumps(segment.to_json())
    again = Segment.from_json(json.loads(text))
    assert again == segment
    assert hash(again) == hash(segment)
    assert json.dumps(again.to_json()) == text


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        SCALARS | st.sampled_from(["and", "or", "not", "plan"]),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["and", "or", "not", "attribute", "in", "=", "locale", "percentage", "registered", "x"]
                ),
                inner,
                max_size=3,
            )
        ),
        max_leaves=10,
    )
)
def test_whatever_a_segment_file_holds_is_a_segment_or_a_clear_error(document: Any) -> None:
    try:
        segment = Segment.from_json(document)
    except InvalidSegmentError as error:
        assert error.faults
        return
    assert Segment.from_json(segment.to_json()) == segment


def test_the_order_of_values_and_conditions_has_no_meaning() -> None:
    assert Segment.where(plan=["pro", "team"]) == Segment.where(plan=["team", "pro", "pro"])
    one, two = Segment.where(plan="pro"), Segment.locale("fr-FR")
    assert one & two == two & one
    assert (one & two) & one == one & two
    assert ~~one == one


def test_types_are_kept_apart() -> None:
    assert Segment.where(vip=True) != Segment.where(vip=1)
    assert Segment.where(age="5") != Segment.where(age=5)


def test_a_field_is_not_taken_for_an_attribute() -> None:
    with pytest.raises(InvalidSegmentError, match=r"use Segment\.locale"):
        Segment.where(locale="fr-FR")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Segment.where(),
        lambda: Segment.where(plan=[]),
        lambda: Segment.where(plan={"a": 1}),
        lambda: Segment.where(plan=object()),
        lambda: Segment.where(score=float("nan")),
        lambda: Segment.where(plan="a\x00"),
        lambda: Segment.where(plan="\ud800"),
        lambda: Segment.compare("age", "~", 1),
        lambda: Segment.compare("age", ">", None),
        lambda: Segment.compare("age", ">", True),
        lambda: Segment.compare("", ">", 1),
        lambda: Segment.locale(),
        lambda: Segment.environment("staging"),
        lambda: Segment.percentage(101),
        lambda: Segment.percentage(-1),
        lambda: Segment.percentage(float("nan")),
        lambda: Segment.registered(),
        lambda: Segment.registered(after=datetime(2027, 1, 1)),
        lambda: Segment.last_seen(before=timedelta(-1)),
        lambda: Segment.last_seen(after=datetime(2027, 1, 2, tzinfo=UTC), before=datetime(2027, 1, 1, tzinfo=UTC)),
        lambda: Segment.not_sent(""),
        lambda: Segment.users("x" * 201),
    ],
)
def test_a_malformed_segment_is_refused(make: Any) -> None:
    with pytest.raises(InvalidSegmentError):
        make()


def test_every_fault_of_a_file_is_told_with_its_place() -> None:
    document = {"and": [{"attribute": "", "in": []}, {"percentage": 200}, {"or": [{"nope": 1}, {"environment": "x"}]}]}
    with pytest.raises(InvalidSegmentError) as caught:
        Segment.from_json(document)
    text = "\n".join(caught.value.faults)
    for place in ("and[0].attribute", "and[0].in", "and[1].percentage", "and[2].or[0]", "and[2].or[1].environment"):
        assert place in text


def test_a_file_nested_too_deep_is_refused() -> None:
    document: Any = {"all": True}
    for _ in range(200):
        document = {"not": document}
    with pytest.raises(InvalidSegmentError, match="nested deeper"):
        Segment.from_json(document)


def test_a_segment_knows_which_campaigns_it_names() -> None:
    segment = ~(Segment.not_sent("a") | Segment.all()) & Segment.not_sent("b")
    assert segment.campaign_keys() == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "segment"),
    [
        ("plan=pro", OneOf(attribute="plan", values=("pro",))),
        (" plan = pro team ", OneOf(attribute="plan", values=("pro team",))),
        ("plan!=pro", Not(part=OneOf(attribute="plan", values=("pro",)))),
        ("age>=18", Compare(attribute="age", operator=">=", value=18)),
        ("age < 18.5", Compare(attribute="age", operator="<", value=18.5)),
        ("since>=2027-01-01", Compare(attribute="since", operator=">=", value="2027-01-01")),
        ("plan in pro,team", Segment.one_of("plan", ["pro", "team"])),
        ('plan in "a,b", c', Segment.one_of("plan", ["a,b", "c"])),
        ("plan not in pro,team", ~Segment.one_of("plan", ["pro", "team"])),
        ("tags has news", Segment.contains("tags", "news")),
        ("vip=true", Segment.one_of("vip", [True, "true"])),
        ("age=30", Segment.one_of("age", [30, "30"])),
        ("version>=true", Compare(attribute="version", operator=">=", value="true")),
        ("age>=1e300", Compare(attribute="age", operator=">=", value=1e300)),
        ("code=1e400", Segment.one_of("code", ["1e400"])),
        ('version>="1e400"', Compare(attribute="version", operator=">=", value="1e400")),
        ('age="30"', Segment.one_of("age", ["30"])),
        ("plan=null", Segment.one_of("plan", [None, "null"])),
        ("plan=", Segment.one_of("plan", [""])),
        ("formula=a=b", Segment.one_of("formula", ["a=b"])),
        ("locale=fr_FR", Segment.locale("fr-FR")),
        ("language in fr,nl", Segment.language("fr", "nl")),
        ("environment=sandbox", Segment.environment("sandbox")),
        ("user!=u-42", ~Segment.users("u-42")),
        ("timezone=Europe/Paris", Segment.timezone("Europe/Paris")),
        ("registered>=2027-01-01", Segment.registered(after=datetime(2027, 1, 1, tzinfo=UTC))),
        ("last_seen<2027-01-01T00:00:00+00:00", Segment.last_seen(before=datetime(2027, 1, 1, tzinfo=UTC))),
        ("attributes.locale=x", Segment.one_of("locale", ["x"])),
    ],
)
def test_a_where_condition_means_its_segment(text: str, segment: Segment) -> None:
    assert parse_where(text) == segment


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plan",
        "=pro",
        "age>=",
        "plan in ",
        "plan in a,,b",
        "locale>=fr",
        "environment=staging",
        "registered=2027-01-01",
        "registered>=yesterday",
        "registered>=2027-01-01T10:00",
        "plan=\x00",
        "user has x",
        "age>=1e400",
        "age<-1e400",
        f"age<{'9' * 5000}",
        f"age={'9' * 31}",
    ],
)
def test_a_malformed_condition_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(InvalidSegmentError, match="--where"):
        parse_where(text)


def test_all_conditions_hold_together_and_all_their_faults_are_told() -> None:
    assert parse_all([]) == Everyone()
    assert parse_all(["a=x", "b=y"]) == Segment.where(a="x", b="y")
    with pytest.raises(InvalidSegmentError) as caught:
        parse_all(["a", "b=1", "locale>x"])
    assert len(caught.value.faults) == 2


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('ab=!<>,." \\inhas1-\x00é'), max_size=16))
def test_any_text_is_a_condition_or_a_clear_error(text: str) -> None:
    try:
        parse_where(text)
    except InvalidSegmentError as error:
        assert error.faults
