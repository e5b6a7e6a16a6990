"""Whatever a server does, each push gets exactly one answer, and never a wrong one."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sender.model import Accepted, NotProcessed, Rejected
from tests.unit.wire_server import Harness

GONE = b'{"reason":"Unregistered","timestamp":1700000000000}'

which = st.integers(0, 50)
steps = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 40), st.sampled_from([2, 100, 5000])),
    st.tuples(st.just("send"), st.integers(1, 40), st.sampled_from([2, 100, 5000])),
    st.tuples(st.just("carry"), st.sampled_from([1, 7, 100, 1 << 20])),
    st.tuples(st.just("carry"), st.sampled_from([1, 7, 100, 1 << 20])),
    st.tuples(st.just("accept"), which),
    st.tuples(st.just("accept_all")),
    st.tuples(st.just("reject"), which, st.sampled_from([400, 410, 429, 503]), st.sampled_from([GONE, b"", b"{"])),
    st.tuples(st.just("cut"), which, st.sampled_from([200, 410]), st.sampled_from([0, 2, 8])),
    st.tuples(st.just("reset"), which, st.sampled_from([0, 2, 8, 11])),
    st.tuples(st.just("refuse"), which),
    st.tuples(st.just("swallow"), which),
    st.tuples(st.just("settings"), st.sampled_from([0, 1, 3, 1000]), st.sampled_from([0, 1, 64, 65_535, 1 << 20])),
    st.tuples(st.just("ping")),
    st.tuples(st.just("goaway"), which, st.sampled_from([b"", b'{"reason":"Shutdown"}', b"bye"])),
    st.tuples(st.just("deadline"), which),
    st.tuples(st.just("pause"), st.booleans()),
)
ends = st.one_of(
    st.just(("drop",)), st.just(("carry", 1 << 20)), st.tuples(st.just("garbage"), st.binary(min_size=1, max_size=40))
)
#: Long ones on purpose: left alone, Hypothesis mostly tries scripts in which nothing has arrived yet.
scripts = st.tuples(
    st.lists(st.tuples(steps, st.sampled_from([0, 7, 1 << 20, 1 << 20])), min_size=12, max_size=60), ends
)


def play(harness: Harness, step: tuple[Any, ...]) -> None:
    kind, *values = step
    stream = harness.open[values[0] % len(harness.open)] if harness.open and values and type(values[0]) is int else None
    if kind == "send":
        harness.send(values[0], values[1])
    elif kind == "carry":
        harness.carry(values[0], rounds=3)
    elif kind == "accept" and stream:
        harness.say(stream, 200)
    elif kind == "accept_all":
        for each in list(harness.open):
            harness.say(each, 200)
    elif kind == "reject" and stream:
        harness.say(stream, values[1], values[2])
    elif kind == "cut" and stream:
        harness.say(stream, values[1], code=values[2])
    elif kind == "reset" and stream:
        harness.processed.add(harness.id_of(stream))
        harness.reset(stream, values[1])
    elif kind == "refuse" and stream and harness.id_of(stream) not in harness.processed:
        harness.reset(stream, 7)
    elif kind == "swallow" and stream:
        harness.processed.add(harness.id_of(stream))
    elif kind == "settings":
        harness.attempt(lambda: harness.server.update_settings({3: values[0], 4: values[1]}))
    elif kind == "ping":
        harness.attempt(lambda: harness.server.ping(b"12345678"))
    elif kind == "goaway":
        goaway(harness, values[0], values[1])
    elif kind == "deadline" and harness.batches:
        harness.wire.expire(harness.batches[values[0] % len(harness.batches)])
    elif kind == "pause":
        harness.wire.pause_writing() if values[0] else harness.wire.resume_writing()
    elif kind == "garbage" and not harness.wire.lost:
        harness.wire.data_received(values[0])
    elif kind == "drop":
        harness.drop()


def goaway(harness: Harness, above: int, debug: bytes) -> None:
    """A last stream id that leaves out nothing that was processed."""
    taken = [stream for stream in harness.requests if harness.id_of(stream) in harness.processed]
    known = sorted(harness.requests)
    floor = max(taken, default=0)
    last = min(harness.last, max(floor, known[max(0, len(known) - 1 - above)] if known else 0))
    harness.attempt(lambda: harness.server.send_goaway(0, last_stream_id=last, debug_data=debug))
    harness.last = min(harness.last, last)
    harness.open = [stream for stream in harness.open if stream <= last]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(first=st.sampled_from([0, 1, 10, 1000]), window=st.sampled_from([0, 50, 65_535]), script=scripts)
def test_every_push_has_one_answer_and_no_answer_is_wrong(first: int, window: int, script: Any) -> None:
    harness = Harness(streams=first, window=window)
    acts, end = script
    for step, chunk in acts:
        play(harness, step)
        if chunk:
            harness.carry(chunk, rounds=3)
    play(harness, end)
    harness.wire.resume_writing()
    harness.carry(rounds=5)
    for batch in harness.batches:
        harness.wire.expire(batch)
    harness.carry(rounds=5)
    if not harness.wire.lost:
        harness.drop()
    check(harness)


def check(harness: Harness) -> None:
    assert max(harness.arrivals.values(), default=1) == 1, "sent twice"
    returned = {id(batch.pushes[place]) for batch, place in harness.returned if batch.answers[place] is None}
    for number, batch in enumerate(harness.batches):
        for push, answer in zip(batch.pushes, batch.answers, strict=True):
            apns_id = push.apns_id
            if answer is None:
                assert id(push) in returned, "neither answered nor given back"
            if answer is None or isinstance(answer, NotProcessed):
                assert apns_id not in harness.processed, "processed, and called not processed"
            if answer is None or (isinstance(answer, NotProcessed) and "never written" in answer.cause):
                assert apns_id not in harness.arrivals, "sent, and called never written"
            if isinstance(answer, Accepted):
                assert harness.said.get(apns_id) == 200
            if isinstance(answer, Rejected):
                assert harness.said.get(apns_id) == answer.status
        assert harness.done[number] == (0 if None in batch.answers else 1)
        assert batch.remaining == batch.answers.count(None)
    assert not harness.wire._streams
    assert not harness.wire._queue
    assert harness.told["lost"] == 1
