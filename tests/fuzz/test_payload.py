"""Payload files and the arguments of an enqueue: all faults in a clear error before anything is written, or bytes that
are JSON, short enough, and can be kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sender.audience import Segment
from sender.client import Sender
from sender.errors import InvalidInputError, SenderError
from sender.model import PushType
from sender.payload import Alert, Payload, Sound, encode
from sender.payload.rules import ALERT, APS
from sender.planning.plan import check_key
from sender.store import apps
from sender.store.database import Database
from tests.fuzz.profile import AWKWARD, fuzz, json_values, numbers, raw_texts

BUNDLE = "com.example.fuzz"
values = st.one_of(json_values, st.sampled_from([0, 1, -1, True, "", "default", "start", "update", {}, []]))
alerts = st.one_of(values, st.dictionaries(st.one_of(st.sampled_from([*ALERT]), raw_texts), values, max_size=4))
sounds = st.one_of(values, st.dictionaries(st.sampled_from(["name", "critical", "volume", "x"]), values, max_size=3))
aps = st.one_of(
    values,
    st.builds(
        lambda rest, alert, sound: {**rest, "alert": alert, "sound": sound},
        st.dictionaries(st.one_of(st.sampled_from([*APS, "thread_id"]), raw_texts), values, max_size=4),
        alerts,
        sounds,
    ),
    st.just({"alert": "x"}),
)
documents = st.one_of(
    json_values,
    st.builds(lambda custom, own: {**custom, "aps": own}, st.dictionaries(raw_texts, json_values, max_size=3), aps),
)
push_types = st.one_of(st.none(), st.sampled_from([*PushType]), raw_texts)
priorities = st.one_of(st.none(), st.sampled_from([10, 5, 1]), values)
collapse_ids = st.one_of(st.none(), st.just("auto"), values)


@fuzz(200)
@given(documents, st.one_of(st.none(), st.just("key"), raw_texts), push_types, priorities, collapse_ids)
def test_any_document_is_bytes_or_is_refused(
    document: Any, key: str | None, push_type: Any, priority: Any, collapse_id: Any
) -> None:
    try:
        encoded = encode(document, key=key, push_type=push_type, priority=priority, collapse_id=collapse_id)
    except InvalidInputError as error:
        assert error.faults and all(error.faults)
        assert len(str(error)) < 50_000
        return
    assert len(encoded.body) <= 5120
    sent = json.loads(encoded.body)
    assert b"\\u0000" not in encoded.body.replace(b"\\\\", b"") and isinstance(sent, dict)
    assert {**sent, "sender": None} == {**json.loads(json.dumps(document)), "sender": None}
    assert encoded.priority in (10, 5, 1)
    assert encoded.collapse_id is None or len(encoded.collapse_id.encode("ascii")) <= 64


anything = st.one_of(json_values, st.just(object()), st.binary(max_size=3), st.just({1: 2}), st.just(datetime.max))


@fuzz(150)
@given(st.dictionaries(st.sampled_from(list(Payload.__dataclass_fields__)), anything, max_size=5), anything)
def test_any_fields_of_a_payload_are_bytes_or_are_refused(fields: dict[str, Any], alert: Any) -> None:
    try:
        given_fields = {"alert": Alert(title=alert, loc_args=alert), "sound": Sound(name=alert, volume=alert)} | fields
        json.loads(encode(Payload(**given_fields), key="key").body)
    except InvalidInputError as error:
        assert error.faults


@fuzz(200)
@given(st.one_of(raw_texts, json_values))
def test_a_key_is_printable_and_short_or_is_refused(key: Any) -> None:
    if not check_key(key):
        assert key.isprintable() and 0 < len(key.encode()) <= 255


@pytest.fixture
def place(sender: Sender, database: Database) -> Sender:
    with database.transaction() as transaction:
        app_id = apps.add(transaction, BUNDLE)
        transaction.execute(
            "INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id) "
            "VALUES (%s, 'production', 'key', '/nowhere.p8', 'TEAM123456', 'KEY1234567')",
            (app_id,),
        )
    return sender


def campaigns(sender: Sender) -> int:
    return len(sender.campaigns.list(limit=100_000))


times = st.one_of(
    st.none(),
    st.datetimes(timezones=st.sampled_from([UTC, None])),
    st.sampled_from([datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)]),
    json_values,
)
durations = st.one_of(st.none(), numbers, st.timedeltas(), st.just(timedelta.max), json_values)


@fuzz(80)
@given(
    st.one_of(raw_texts, json_values),
    documents,
    st.fixed_dictionaries(
        {},
        optional={
            "rate": st.one_of(numbers, json_values),
            "expires_in": durations,
            "grace": durations,
            "send_at": times,
            "batch_size": st.one_of(numbers, json_values),
            "delivery": st.one_of(st.sampled_from(["at_least_once", "at_most_once"]), json_values),
            "audience": st.one_of(st.just(Segment.all()), json_values),
            "draft": st.booleans(),
        },
    ),
)
def test_an_enqueue_writes_one_row_that_can_be_read_or_none(
    place: Sender, key: Any, document: Any, options: dict[str, Any]
) -> None:
    before = campaigns(place)
    try:
        campaign = place.campaigns.enqueue(BUNDLE, key=key, payload=document, **options)
    except SenderError as error:
        assert str(error).strip()
        assert campaigns(place) == before
        return
    assert campaigns(place) in (before, before + 1)
    place.campaigns.report(campaign.key)
    place.campaigns.cancel(campaign.key)


@fuzz(60)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "rate": st.one_of(st.none(), st.floats(0.001, 1e9), st.integers(1, 10**9)),
            "expires_in": st.one_of(st.floats(0, 1e10), st.timedeltas()),
            "grace": st.one_of(st.floats(0, 1e10), st.timedeltas()),
            "send_at": times,
        },
    )
)
def test_times_and_rates_at_the_edges_can_be_read_back(place: Sender, options: dict[str, Any]) -> None:
    number = campaigns(place)
    try:
        campaign = place.campaigns.enqueue(BUNDLE, key=f"k{number}", payload={"aps": {"alert": "x"}}, **options)
    except SenderError:
        assert campaigns(place) == number
        return
    assert place.campaigns.report(campaign.key).key == campaign.key
    assert campaigns(place) == number + 1


def test_every_awkward_text_is_a_key_or_is_refused(place: Sender) -> None:
    for text in AWKWARD:
        try:
            place.campaigns.enqueue(BUNDLE, key=text, payload={"aps": {"alert": text}, "x": text})
        except InvalidInputError as error:
            assert error.faults
    campaigns(place)
