"""The wire by itself, against an HTTP/2 server in memory."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
from ngh2 import NeverIndexedHeader

from sender.apns.batch import Batch
from sender.apns.replies import parse_goaway
from sender.apns.wire import Wire
from sender.model import Accepted, NotProcessed, Push, Rejected, Unknown
from tests.unit.wire_server import HEADERS, Harness, Tokens


def test_nothing_is_submitted_before_settings_but_one() -> None:
    harness = Harness()
    harness.send(10)
    harness.loop.turn()
    assert harness.wire.in_flight == 1
    harness.carry()
    assert len(harness.open) == 10


def test_many_pushes_of_one_turn_leave_in_one_write() -> None:
    harness = Harness()
    harness.carry()
    before = harness.pipe.writes
    for _ in range(20):
        harness.send(4)
    harness.loop.turn()
    assert harness.pipe.writes == before + 1


def test_path_token_and_apns_id_are_never_indexed_and_the_rest_is() -> None:
    harness = Harness()
    harness.send(1, headers=replace(HEADERS, collapse_id="sale"))
    harness.carry()
    (headers,) = harness.raw_headers
    never = {header[0] for header in headers if isinstance(header, NeverIndexedHeader)}
    assert never == {b":path", b"authorization", b"apns-id"}
    assert dict(headers)[b":path"] == b"/3/device/" + b"ab" * 32
    assert dict(headers)[b":authority"] == b"apns.test"


def test_repeated_headers_cost_next_to_nothing() -> None:
    harness = Harness(tokens=Tokens())
    harness.send(1, size=2)
    harness.carry()
    harness.send(50, size=2)
    harness.loop.turn()
    assert len(harness.pipe.written) / 50 < 150  # path, apns-id, frame headers, and the token of these tests


def test_a_new_token_is_in_the_next_request() -> None:
    harness = Harness()
    harness.send(1)
    harness.carry()
    harness.tokens.value = b"bearer two"
    harness.send(1)
    harness.carry()
    assert [dict(headers)[b"authorization"] for headers in harness.raw_headers] == [b"bearer one", b"bearer two"]


def test_header_blocks_do_not_grow_with_the_campaigns() -> None:
    harness = Harness(streams=1000)
    for number in range(300):
        harness.send(1, headers=replace(HEADERS, expiration=number))
        harness.carry()
    assert len(harness.wire._blocks) <= 64


@pytest.mark.parametrize(
    "body", [b"", b"oops", b"[]", b'{"reason":7}', b'{"reason":null}', b"\xff", b"[" * 5000, b'{"timestamp":1e400}']
)
def test_an_error_body_that_is_not_apples_leaves_the_status(body: bytes) -> None:
    harness = Harness()
    batch = harness.send(1)
    harness.carry()
    harness.say(harness.open[0], 410, body)
    harness.carry()
    assert batch.answers == [Rejected(status=410)]


@pytest.mark.parametrize("timestamp", [b"1e300", b'"soon"', b"true", b"-1e18"])
def test_a_timestamp_out_of_this_world_is_none(timestamp: bytes) -> None:
    harness = Harness()
    batch = harness.send(1)
    harness.carry()
    harness.say(harness.open[0], 410, b'{"reason":"Unregistered","timestamp":' + timestamp + b"}")
    harness.carry()
    assert batch.answers == [Rejected(status=410, reason="Unregistered")]


def test_an_endless_error_body_is_not_kept() -> None:
    harness = Harness()
    batch = harness.send(1)
    harness.carry()
    harness.say(harness.open[0], 500, b"x" * 3_000_000)
    harness.carry(rounds=500)
    assert batch.answers == [Rejected(status=500)]


def test_a_body_in_pieces_is_put_together() -> None:
    harness = Harness()
    batch = harness.send(1)
    harness.carry()
    harness.say(harness.open[0], 400, b'{"reason":"BadDeviceToken"}')
    harness.carry(chunk=1)
    assert batch.answers == [Rejected(status=400, reason="BadDeviceToken")]


def test_an_answer_before_the_request_was_whole_frees_its_stream() -> None:
    harness = Harness(window=10)
    harness.carry()
    batch = harness.send(1, size=4000)
    harness.loop.turn()
    harness._serve(bytes(harness.pipe.written))
    harness.pipe.written.clear()
    harness.say(1, 413, b"")
    harness.carry()
    assert batch.answers == [Rejected(status=413)]
    assert harness.wire.in_flight == 0


def test_a_slow_reader_gets_no_more_requests_until_it_reads() -> None:
    harness = Harness()
    harness.carry()
    harness.wire.pause_writing()
    harness.send(5)
    harness.carry()
    assert harness.open == []
    harness.wire.resume_writing()
    harness.carry()
    assert len(harness.open) == 5


def test_an_expired_batch_is_cancelled_and_what_was_queued_was_never_written() -> None:
    harness = Harness(streams=3)
    harness.carry()
    batch = harness.send(5)
    harness.carry()
    harness.wire.expire(batch)
    harness.carry()
    assert batch.answers == [Unknown(cause="timeout")] * 3 + [NotProcessed(cause="timeout: never written")] * 2
    assert harness.wire.in_flight == 0
    assert harness.open == []


def test_a_deadline_says_nothing_of_what_another_connection_has_of_the_batch() -> None:
    here, there = Harness(streams=1), Harness()
    here.carry()
    there.carry()
    push = Push(token="ab" * 32, apns_id=str(uuid.uuid4()), payload=b"{}", headers=HEADERS)
    batch = Batch([push] * 4, 1030.0, lambda batch: None)
    here.wire.enqueue([(batch, 0), (batch, 1)])
    there.wire.enqueue([(batch, 2), (batch, 3)])
    here.carry()
    there.carry()
    here.wire.expire(batch)
    assert batch.answers == [Unknown(cause="timeout"), NotProcessed(cause="timeout: never written"), None, None]
    there.wire.expire(batch)
    assert batch.answers[2:] == [Unknown(cause="timeout")] * 2  # written: they may have arrived


def test_a_success_whose_end_never_comes_is_accepted_at_the_deadline() -> None:
    harness = Harness()
    batch = harness.send(1)
    harness.carry()
    harness.server.send_response(harness.open[0], [(b":status", b"200")])
    harness.carry()
    harness.wire.expire(batch)
    assert batch.answers == [Accepted()]


def test_an_idle_connection_is_pinged_once_an_hour_and_given_up_when_dead() -> None:
    harness = Harness()
    harness.carry()
    harness.loop.now += 3599
    harness.wire.check(harness.loop.now)
    harness.loop.turn()
    assert not harness.pipe.written
    harness.loop.now += 1
    harness.wire.check(harness.loop.now)
    harness.carry()
    harness.loop.now += Wire.PING_TIMEOUT
    harness.wire.check(harness.loop.now)
    assert not harness.pipe.closed
    harness.gone = True
    harness.loop.now += 3600
    harness.wire.check(harness.loop.now)
    harness.loop.now += Wire.PING_TIMEOUT
    harness.wire.check(harness.loop.now)
    harness.loop.turn()
    assert harness.told["lost"] == 1


def test_a_flood_of_pings_to_a_peer_that_does_not_read_ends_the_connection() -> None:
    harness = Harness()
    harness.carry()
    harness.wire.pause_writing()
    ping = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + bytes(8)
    for _ in range(50):
        if not harness.pipe.closed:
            harness.wire.data_received(ping * 100)
    harness.loop.turn()
    assert harness.told["lost"] == 1
    assert len(harness.pipe.written) < 10_000


@pytest.mark.parametrize(
    ("debug", "said"),
    [
        (b'{"reason":"Shutdown"}', "Shutdown"),
        (b"", "NO_ERROR"),
        (b"plain words", "NO_ERROR: plain words"),
        (b"\x00\xff\x1b[31m", "NO_ERROR: \ufffd[31m"),
        (b'{"reason":5}', 'NO_ERROR: {"reason":5}'),
        (b"[" * 9000, "NO_ERROR: " + "[" * 100),
    ],
)
def test_goaway_is_read_as_json_and_kept_when_it_is_not(debug: bytes, said: str) -> None:
    assert parse_goaway(0, debug) == said
