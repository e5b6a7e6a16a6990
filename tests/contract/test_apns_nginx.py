"""The client against a server that this project did not write: nginx, configured as an APNs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sender.apns.client import ApnsClient
from sender.model import Accepted, Answer, NotProcessed, Rejected, Unknown
from tests.contract.conftest import APP, Bench, push, pushes
from tests.contract.nginx_server import BAD, EMPTY_ERROR, MISSING, NGINX, UNREGISTERED, Nginx, run_nginx

pytestmark = pytest.mark.skipif(NGINX is None, reason=MISSING)


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    with run_nginx(tmp_path) as running:
        yield running


@pytest.fixture
def closing_nginx(tmp_path: Path) -> Iterator[Nginx]:
    """Says GOAWAY after every hundred requests."""
    with run_nginx(tmp_path, keepalive_requests=100, streams=32) as running:
        yield running


def test_nginx_gets_every_push_once_and_every_answer_is_its_own(bench: Bench, nginx: Nginx) -> None:
    prefixes = ["", UNREGISTERED, BAD]
    sent = [push(prefixes[place % 3] + push().token[:60] if place % 3 else "ac" * 30) for place in range(3000)]
    answers = bench.at(nginx).send(sent, timeout=30)
    when = datetime.fromtimestamp(1_700_000_000, UTC)
    gone, bad = (
        Rejected(status=410, reason="Unregistered", timestamp=when),
        Rejected(status=400, reason="BadDeviceToken"),
    )
    assert answers == [Accepted(), gone, bad] * 1000
    got = nginx.requests()
    assert Counter(request[1] for request in got) == Counter(each.apns_id for each in sent)
    assert {request[0] for request in got} == {each.token for each in sent}
    assert {(request[3], request[4]) for request in got} == {("1900000000", APP)}


def test_nginx_may_say_goaway_as_often_as_it_likes(bench: Bench, closing_nginx: Nginx) -> None:
    sent = pushes(2000)

    async def test() -> list[Answer]:
        client = bench.at(closing_nginx).client(apns_connections=2)
        assert isinstance(client, ApnsClient)
        answers: list[Answer] = []
        for start in range(0, len(sent), 500):
            answers += await client.send(sent[start : start + 500], timeout=20)
        assert client.snapshot().counts["goaways"] >= 10
        return answers

    answers = bench.run(test)
    got = Counter(request[1] for request in closing_nginx.requests())
    assert max(got.values()) == 1
    for each, answer in zip(sent, answers, strict=True):
        assert isinstance(answer, Accepted | NotProcessed)  # nginx answers all that it took
        assert got[each.apns_id] == (1 if isinstance(answer, Accepted) else 0)
    assert sum(isinstance(answer, Accepted) for answer in answers) > 1000


def test_a_stream_that_nginx_resets_is_unknown_and_harms_no_other(bench: Bench, nginx: Nginx) -> None:
    sent = [push(EMPTY_ERROR + push().token[:60]) if place == 5 else push("ac" * 32) for place in range(20)]
    answers = bench.at(nginx).send(sent)
    assert isinstance(answers[5], Unknown)
    assert answers[:5] + answers[6:] == [Accepted()] * 19


def test_twenty_thousand_rejections_need_one_connection(bench: Bench, nginx: Nginx) -> None:
    async def test() -> None:
        client = bench.at(nginx).client(apns_connections=1)
        for _ in range(10):
            answers = await client.send([push(BAD + "00" * 30) for _ in range(2000)], timeout=30)
            assert set(answers) == {Rejected(status=400, reason="BadDeviceToken")}

    bench.run(test)
    assert len({request[5] for request in nginx.requests()}) == 1


def test_nginx_reads_a_large_payload_through_its_small_windows(bench: Bench, nginx: Nginx) -> None:
    large = b'{"aps":{"alert":"' + b"x" * 4000 + b'"}}'
    assert bench.at(nginx).send(pushes(200, payload=large, token="ac" * 32)) == [Accepted()] * 200
