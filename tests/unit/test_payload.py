"""The payload: every aps key, and everything that APNs would refuse, all at once."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sender import Alert, InvalidPayloadError, Payload, PushType, Sound
from sender.payload import encode, to_bytes

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abcdé", min_size=1), inner, max_size=3),
    max_leaves=8,
)


def body_of(payload: Any, **options: Any) -> dict[str, Any]:
    return json.loads(encode(payload, key="spring", **options).body)


def faults_of(payload: Any, **options: Any) -> list[str]:
    with pytest.raises(InvalidPayloadError) as caught:
        encode(payload, key="spring", **options)
    return list(caught.value.faults)


def test_every_field_lands_under_apples_name() -> None:
    aps = body_of(
        Payload(
            alert=Alert(
                title="t",
                subtitle="s",
                body="b",
                launch_image="i",
                loc_key="k",
                loc_args=["1"],
                title_loc_key="tk",
                title_loc_args=["2"],
                subtitle_loc_key="sk",
                subtitle_loc_args=["3"],
            ),
            badge=0,
            sound=Sound(name="alarm.caf", critical=True, volume=0.5),
            thread_id="thread",
            category="cat",
            content_available=True,
            mutable_content=True,
            target_content_id="window",
            interruption_level="time-sensitive",
            relevance_score=0.5,
            filter_criteria="work",
            data={"link": "app://sale"},
        )
    )["aps"]
    assert aps == {
        "alert": {
            "title": "t",
            "subtitle": "s",
            "body": "b",
            "launch-image": "i",
            "loc-key": "k",
            "loc-args": ["1"],
            "title-loc-key": "tk",
            "title-loc-args": ["2"],
            "subtitle-loc-key": "sk",
            "subtitle-loc-args": ["3"],
        },
        "badge": 0,
        "sound": {"critical": 1, "name": "alarm.caf", "volume": 0.5},
        "thread-id": "thread",
        "category": "cat",
        "content-available": 1,
        "mutable-content": 1,
        "target-content-id": "window",
        "interruption-level": "time-sensitive",
        "relevance-score": 0.5,
        "filter-criteria": "work",
    }


def test_a_live_activity_has_its_keys_type_and_times_in_unix_seconds() -> None:
    moment = datetime(2027, 4, 1, 12, tzinfo=UTC)
    encoded = encode(
        Payload(
            alert="started",
            timestamp=moment,
            event="start",
            content_state={"score": 1},
            stale_date=moment,
            dismissal_date=1_900_000_000,
            attributes_type="Game",
            attributes={"team": "red"},
            input_push_token=True,
        ),
        key="k",
    )
    aps = json.loads(encoded.body)["aps"]
    assert encoded.push_type is PushType.LIVEACTIVITY
    assert aps["timestamp"] == aps["stale-date"] == int(moment.timestamp())
    assert aps["dismissal-date"] == 1_900_000_000
    assert aps["attributes-type"] == "Game"
    assert aps["input-push-token"] == 1


def test_custom_keys_stand_beside_aps_and_the_campaigns_key_under_the_reserved_one() -> None:
    body = body_of(Payload(alert="x", data={"link": "app://sale"}))
    assert body == {"aps": {"alert": "x"}, "link": "app://sale", "sender": {"campaign": "spring"}}


def test_the_reserved_key_and_aps_are_refused_as_custom_keys() -> None:
    assert "reserved" in faults_of(Payload(alert="x", data={"sender": 1}))[0]
    assert "aps" in faults_of(Payload(alert="x", data={"aps": {}}))[0]


def test_the_push_type_follows_from_the_content() -> None:
    assert encode(Payload(alert="x"), key=None).push_type is PushType.ALERT
    background = encode(Payload(content_available=True, data={"a": 1}), key=None)
    assert (background.push_type, background.priority) == (PushType.BACKGROUND, 5)
    assert encode(Payload(alert="x", content_available=True), key=None).push_type is PushType.ALERT
    assert encode({"mdm": "magic"}, key="k").body == b'{"mdm":"magic"}'


@pytest.mark.parametrize(
    ("payload", "options", "words"),
    [
        (Payload(), {}, "needs an alert, a badge or a sound"),
        (Payload(alert="x"), {"push_type": "background"}, "content-available 1"),
        (Payload(alert="x", content_available=True), {"push_type": "background"}, "has no alert"),
        (Payload(content_available=True), {"priority": 10}, "background push must have 5"),
        (Payload(alert="x"), {"priority": 7}, "10, 5 or 1"),
        (Payload(alert="x"), {"priority": True}, "10, 5 or 1"),
        (Payload(alert="x"), {"push_type": "alarm"}, "must be one of"),
        (Payload(alert="x"), {"collapse_id": "é" * 33}, "66 bytes"),
        (Payload(alert="x"), {"collapse_id": ""}, "not empty"),
        (Payload(alert="x"), {"collapse_id": "a\nb"}, "printable ASCII"),
        (Payload(alert="x", badge=-1), {}, "0 or more"),
        (Payload(alert="x", badge=True), {}, "whole number"),
        (Payload(alert="x", interruption_level="loud"), {}, "time-sensitive"),
        (Payload(alert="x", relevance_score=2), {}, "from 0 to 1"),
        (Payload(alert="x", sound=Sound(volume=2.0)), {}, "aps.sound.volume"),
        (Payload(alert=Alert()), {}, "is empty"),
        (Payload(alert=Alert(loc_key="k", loc_args="abc")), {}, "list of texts"),
        (Payload(alert="x", event="update"), {"push_type": "alert"}, "belongs to push type liveactivity"),
        (Payload(event="update", content_state={}), {}, "timestamp: is missing"),
        (Payload(event="start", timestamp=1, content_state={}), {}, "attributes-type: is missing"),
        (Payload(alert="x", timestamp=datetime(2027, 1, 1), event="end"), {}, "aware datetime"),
        ({"alert": "x"}, {}, '"aps" is missing'),
        ({"aps": []}, {}, "must be a dictionary"),
        ({"aps": {"alert": "x", "content_available": 1}}, {}, 'spelt "content-available"'),
        ({"aps": {"alert": {"title_loc_key": "x"}}}, {}, 'spelt "title-loc-key"'),
        ({"aps": {"alert": "x"}, "n": float("nan")}, {}, "n: nan is not a number"),
        ({"aps": {"alert": "x"}, "n": 2**70}, {}, "too large"),
        ({"aps": {"alert": "x"}, "n": {1: 2}}, {}, "n: the key '1' is not a text"),
        ({"aps": {"alert": "x"}, "when": datetime(2027, 1, 1)}, {}, "when: datetime is not JSON"),
        ({"aps": {"alert": "\ud83d"}}, {}, "half a surrogate pair"),
        ({"aps": {"alert": "a\x00b"}}, {}, "NUL"),
        ("x", {}, "must be a Payload or a dictionary"),
        (Payload(alert="x", data=[1]), {}, "data: must be a dictionary"),
    ],
)
def test_what_apns_would_refuse_is_refused(payload: Any, options: dict[str, Any], words: str) -> None:
    assert any(words in fault for fault in faults_of(payload, **options)), faults_of(payload, **options)


def test_all_faults_are_told_at_once_the_size_too() -> None:
    faults = faults_of({"aps": {"alert": "x" * 5000, "badge": "1", "sound": 3}}, priority=9, collapse_id="x" * 65)
    assert len(faults) == 5
    assert any("too many" in fault for fault in faults)


def test_a_structure_that_contains_itself_is_a_fault() -> None:
    loop: dict[str, Any] = {}
    loop["loop"] = loop
    assert any("nested deeper" in fault for fault in faults_of({"aps": {"alert": "x"}, "loop": loop}))


@pytest.mark.parametrize(("push_type", "most"), [("alert", 4096), ("voip", 5120)])
def test_the_size_is_measured_on_the_bytes_that_go_out(push_type: str, most: int) -> None:
    def payload(letters: int) -> Payload:
        return Payload(alert="é" * letters)

    spare = most - len(encode(payload(1), key="spring", push_type=push_type).body) + 2
    full = encode(payload(spare // 2), key="spring", push_type=push_type)
    assert most - 1 <= len(full.body) <= most
    assert faults_of(payload(spare // 2 + 1), push_type=push_type)
    assert "campaign's key" in faults_of(payload(spare // 2 + 1), push_type=push_type)[0]


def test_the_collapse_id_comes_from_the_key_is_at_most_64_bytes_and_can_be_turned_off() -> None:
    assert encode(Payload(alert="x"), key="spring-2027").collapse_id == "spring-2027"
    digest = encode(Payload(alert="x"), key="é" * 100).collapse_id
    assert digest is not None
    assert len(digest) <= 64
    assert digest.isascii()
    assert encode(Payload(alert="x"), key="k" * 65).collapse_id != encode(Payload(alert="x"), key="k" * 66).collapse_id
    assert encode(Payload(alert="x"), key="k", collapse_id=None).collapse_id is None
    assert encode(Payload(alert="x"), key="k", collapse_id="mine").collapse_id == "mine"


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=5), JSON, max_size=4))
def test_any_json_beside_aps_goes_out_as_it_is_or_is_refused_clearly(data: dict[str, Any]) -> None:
    try:
        encoded = encode({"aps": {"alert": "x"}, **data}, key="k")
    except InvalidPayloadError as error:
        assert all("too many" in fault for fault in error.faults)
        return
    assert json.loads(encoded.body) == {"aps": {"alert": "x"}, **data, "sender": {"campaign": "k"}}
    assert to_bytes(encoded.document, "k") == encoded.body
