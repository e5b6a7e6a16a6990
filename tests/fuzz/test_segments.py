"""Segment files, --where strings, and the SQL that becomes of them: a clear refusal, or a segment that means the same
after a round trip and that PostgreSQL takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.audience import Segment
from sender.audience.segment_json import OPERATORS
from sender.audience.where import parse, parse_all
from sender.errors import InvalidSegmentError
from sender.store import apps, inventory
from sender.store.database import Database
from tests.fuzz.profile import AWKWARD, fuzz, json_values, numbers, raw_texts, texts

HEADS = ["all", "attribute", "locale", "language", "timezone", "environment", "user", "registered", "last_seen"]
HEADS += ["percentage", "not_sent", "and", "or", "not"]
scalars = st.one_of(st.none(), st.booleans(), numbers, raw_texts)
moments = st.one_of(
    raw_texts,
    st.sampled_from(["2026-01-01T00:00:00+00:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]),
    st.builds(lambda ago: {"ago": ago}, scalars),
)
leaves = st.one_of(
    st.just({"all": True}),
    st.builds(
        lambda name, word, value: {"attribute": name, word: value}, raw_texts, st.sampled_from(OPERATORS), scalars
    ),
    st.builds(lambda name, values: {"attribute": name, "in": values}, raw_texts, st.lists(scalars, max_size=4)),
    st.builds(lambda head, values: {head: values}, st.sampled_from(HEADS[2:7]), st.lists(raw_texts, max_size=3)),
    st.builds(lambda head, value: {head: value}, st.sampled_from(HEADS), json_values),
    st.builds(
        lambda head, ends: {head: ends},
        st.sampled_from(["registered", "last_seen"]),
        st.dictionaries(st.sampled_from(["after", "before"]), moments, min_size=1),
    ),
    st.builds(lambda percent, seed: {"percentage": percent, "seed": seed}, numbers, raw_texts),
    json_values,
)
documents = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda word, parts: {word: parts}, st.sampled_from(["and", "or"]), st.lists(inner, max_size=3)),
        inner.map(lambda part: {"not": part}),
    ),
    max_leaves=6,
)


def read(document: Any) -> Segment | None:
    """The segment, None when it was refused."""
    try:
        segment = Segment.from_json(document)
    except InvalidSegmentError as error:
        assert error.faults and all(error.faults)
        assert len(str(error)) < 20_000
        return None
    assert Segment.from_json(json.loads(json.dumps(segment.to_json()))) == segment
    return segment


class Place:
    """An app with a device, to count segments of."""

    def __init__(self, database: Database) -> None:
        self.database = database
        with database.transaction() as transaction:
            self.app_id = apps.add(transaction, "com.example.fuzz") or 0
            transaction.execute(
                "INSERT INTO {s}.devices (app_id, token, environment, attributes, registered_at) "
                """VALUES (%s, 'ab', 'production', '{"plan": "pro", "age": 18, "tags": ["news"]}', now())""",
                (self.app_id,),
            )

    def count(self, segment: Segment) -> int:
        with self.database.transaction() as transaction:
            return sum(inventory.count_by_state(transaction, self.app_id, segment).values())


@pytest.fixture
def place(database: Database) -> Place:
    return Place(database)


@fuzz(150)
@given(documents)
def test_any_document_is_a_segment_that_postgresql_takes_or_is_refused(place: Place, document: Any) -> None:
    segment = read(document)
    if segment is not None:
        assert place.count(segment) + place.count(~segment) == 1


wheres = st.one_of(
    raw_texts,
    st.builds(
        lambda name, operator, value: f"{name}{operator}{value}",
        st.one_of(st.sampled_from(["plan", "age", "locale", "user", "registered", "attributes.locale"]), raw_texts),
        st.sampled_from(["=", "!=", "==", "<", "<=", ">", ">=", " in ", " not in ", " has ", " IN ", " "]),
        st.one_of(
            raw_texts, st.lists(raw_texts, max_size=3).map(",".join), st.sampled_from(['"a"', '"', '"a\\', "a,,b"])
        ),
    ),
)


@fuzz(150)
@given(wheres)
def test_any_condition_is_a_segment_that_postgresql_takes_or_is_refused(place: Place, text: str) -> None:
    try:
        segment = parse(text)
    except InvalidSegmentError as error:
        assert error.faults
        return
    assert read(segment.to_json()) == segment
    assert place.count(segment) + place.count(~segment) == 1


@fuzz(50)
@given(st.lists(wheres, max_size=4))
def test_conditions_together_are_all_of_them_or_all_faults(texts: list[str]) -> None:
    try:
        parse_all(texts)
    except InvalidSegmentError as error:
        bad = 0
        for text in texts:
            try:
                parse(text)
            except InvalidSegmentError:
                bad += 1
        assert len(error.faults) >= bad > 0


def test_every_awkward_text_in_every_place(place: Place) -> None:
    for text in AWKWARD:
        for head in HEADS:
            read({head: text})
            read({head: [text]})
        for operator in OPERATORS:
            segment = read({"attribute": text, operator: [text] if operator == "in" else text})
            if segment is not None:
                place.count(segment)


def test_conditions_that_nest_or_repeat_without_end_are_refused_in_time() -> None:
    deep: Any = {"all": True}
    for _ in range(5_000):
        deep = {"not": deep}
    assert read(deep) is None
    assert read({"or": [{"user": [f"u{number}"]} for number in range(1_001)]}) is None
    for text in ("a in " + "," * 50_000, "a in " + '"' * 50_000, "=" * 50_000, "a" * 100_000, "a in " + '"\\' * 20_000):
        with pytest.raises(InvalidSegmentError) as caught:
            parse(text)
        assert len(str(caught.value)) < 1_000


def test_as_many_conditions_as_are_allowed_are_counted_in_time(place: Place) -> None:
    parts = [{"or": [{"attribute": f"a{n}", "in": [1]}, {"attribute": f"b{n}", "<": 2}]} for n in range(500)]
    segment = read({"and": parts})
    assert segment is not None and place.count(~segment) == 1


@fuzz(50)
@given(texts, texts)
def test_values_are_values_and_never_sql(place: Place, name: str, value: str) -> None:
    segment = read({"attribute": name or "x", "in": [value]})
    if segment is not None and (name, value) != ("plan", "pro"):
        assert place.count(segment) == 0
