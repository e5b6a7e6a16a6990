"""What servers say: APNs's error bodies and GOAWAYs. Whatever they hold, an answer is a value that can be kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sender.apns.replies import parse_error, parse_goaway, parse_headers, rejected
from sender.model import Rejected
from sender.policy.outcomes import rule_for
from tests.fuzz.profile import fuzz, json_values, numbers, raw_texts, texts

bodies = st.one_of(
    st.binary(max_size=200),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries(
        {}, optional={"reason": st.one_of(raw_texts, json_values), "timestamp": st.one_of(numbers, json_values)}
    ).map(lambda value: json.dumps(value).encode()),
    st.integers(1, 20_000).map(lambda depth: b'{"reason":' + b"[" * depth),
    st.integers(1, 5_000).map(lambda depth: b'{"reason":' + b"[" * depth + b"]" * depth + b"}"),
)


def can_be_kept(text: str) -> bool:
    """By PostgreSQL, by a log line, by a terminal."""
    return text.isprintable() and len(text.encode()) <= 400


@fuzz(300)
@given(bodies)
def test_an_error_body_gives_a_reason_that_can_be_kept_and_a_time_that_can_be(body: bytes) -> None:
    reason, timestamp = parse_error(body)
    assert can_be_kept(reason)
    if timestamp is not None:
        assert datetime(1970, 1, 1, tzinfo=UTC) <= timestamp < datetime(2200, 1, 1, tzinfo=UTC)


@fuzz(100)
@given(st.integers(0, 999), bodies)
def test_there_is_a_rule_for_every_rejection(status: int, body: bytes) -> None:
    answer = rejected(status, body, None)
    assert isinstance(answer, Rejected)
    assert rule_for(answer).meaning


@fuzz(50)
@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60), st.integers(1, 10**13))
def test_a_well_formed_body_is_understood(reason: str, milliseconds: int) -> None:
    body = json.dumps({"reason": reason, "timestamp": milliseconds}).encode()
    expected = datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds < 7_258_118_400_000 else None
    assert parse_error(body) == (reason, expected)


@fuzz(200)
@given(st.integers(0, 2**32 - 1), st.one_of(bodies, texts.map(str.encode)))
def test_a_goaway_says_something_printable(code: int, debug: bytes) -> None:
    said = parse_goaway(code, debug)
    assert said and can_be_kept(said)


@fuzz(50)
@given(st.lists(st.tuples(st.sampled_from([b":status", b"apns-unique-id", b"x"]), st.binary(max_size=40)), max_size=5))
def test_response_headers_of_any_bytes_are_read(headers: list[tuple[bytes, bytes]]) -> None:
    status, unique_id = parse_headers(headers)
    assert status >= 0
    assert unique_id is None or isinstance(unique_id, str)


def test_an_answer_of_the_right_form_with_odd_values_is_still_an_answer() -> None:
    odd: list[Any] = [None, True, [], {}, "", "\0", "\ud800", "A" * 10_000]
    for reason in odd:
        for timestamp in [*odd, -1, 0, 1e400, float("nan"), 10**300, 9_999_999_999_999]:
            found, when = parse_error(json.dumps({"reason": reason, "timestamp": timestamp}).encode())
            assert can_be_kept(found) and when is None
