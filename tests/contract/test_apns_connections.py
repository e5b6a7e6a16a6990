"""The client's connections: opened gradually, replaced with back-off, never in the way of an answer."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import SecretStr

from sender.apns.client import ApnsClient
from sender.apns.clients import Clients
from sender.apns.wire import Wire
from sender.errors import CredentialError
from sender.model import Accepted, CredentialKind, CredentialRef, Environment, NotProcessed, Rejected, Unknown
from sender.simulator import (
    Behaviour,
    GoAway,
    OutageKind,
    ProviderTokens,
    Rule,
    Scenario,
    Settings,
    SettingsChange,
    Simulator,
    SimulatorConfig,
)
from tests.contract.conftest import APP, Bench, push, pushes


@pytest.fixture
def there(bench: Bench, simulator: Simulator) -> Bench:
    return bench.at(simulator)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


# --- not able to connect ------------------------------------------------------------------------------------------


def test_a_refused_connection_leaves_every_push_not_processed(bench: Bench) -> None:
    bench.url = f"https://127.0.0.1:{free_port()}"
    answers = bench.send(pushes(100))
    assert {type(answer) for answer in answers} == {NotProcessed}
    assert "refused the connection" in answers[0].cause  # type: ignore[union-attr]


def test_a_server_that_refuses_sees_few_attempts_and_nobody_waits(there: Bench, simulator: Simulator) -> None:
    simulator.control.refuse(60.0, kind=OutageKind.RESET)

    async def test() -> int:
        client = there.client()
        end = time.monotonic() + 2.5
        answered = 0
        while time.monotonic() < end:
            await client.ready()
            assert {type(answer) for answer in await client.send(pushes(5), timeout=5)} == {NotProcessed}
            answered += 5
            await asyncio.sleep(0.005)
        return answered

    before = Counter(simulator.control.counters().attempts_per_second)
    assert there.run(test) > 50
    seen = Counter(simulator.control.counters().attempts_per_second) - before
    assert max(seen.values()) <= 9


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (OutageKind.SILENT, "did not answer within"),
        (OutageKind.TLS_ALERT, "handshake"),
        (OutageKind.WRONG_CERTIFICATE, "is not trusted"),
        (OutageKind.CLOSE, "closed the connection in the handshake"),
        (OutageKind.RESET, "closed the connection in the handshake"),
    ],
)
def test_a_failed_handshake_is_said_in_plain_words(
    there: Bench, simulator: Simulator, kind: OutageKind, words: str
) -> None:
    simulator.control.refuse(60.0, kind=kind)
    (answer,) = there.send([push()], apns_connect_timeout=0.3 if kind is OutageKind.SILENT else 5.0)
    assert isinstance(answer, NotProcessed)
    assert words in answer.cause
    assert "SSL" not in answer.cause


def test_a_server_of_plain_text_is_recognised(bench: Bench) -> None:
    async def test() -> str:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await reader.read()
            writer.close()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            bench.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            answers = await bench.client().send([push()], timeout=5)
            return str(answers[0].cause)

    assert "does not speak TLS" in bench.run(test)


def test_an_unknown_host_is_named(bench: Bench) -> None:
    bench.url = "https://apns.invalid:443"
    (answer,) = bench.send([push()])
    assert "there is no host 'apns.invalid'" in answer.cause  # type: ignore[union-attr]


def test_it_connects_again_when_the_server_is_back(there: Bench, simulator: Simulator) -> None:
    async def test() -> None:
        client = there.client()
        assert await client.send([push()], timeout=5) == [Accepted()]
        simulator.control.refuse(1.0, drop=True)
        seen = []
        for _ in range(100):
            seen += await client.send([push()], timeout=5)
            if len(seen) > 3 and seen[-1] == Accepted():
                break
            await asyncio.sleep(0.1)
        assert seen[-1] == Accepted()
        assert client.snapshot().failures_in_a_row == 0

    there.run(test)


def test_a_connection_that_dies_before_it_answers_counts_as_a_failure(there: Bench, simulator: Simulator) -> None:
    settings = Settings(streams_before_auth=0)
    simulator.control.set_scenario(Scenario(settings=settings))

    async def test() -> None:
        client = there.client()
        waiting = client.send(pushes(10), timeout=8)
        end = time.monotonic() + 2
        while time.monotonic() < end or client.snapshot().counts.get("failures", 0) < 2:
            await asyncio.sleep(0.05)
            simulator.control.drop()
        health = client.snapshot()
        assert health.counts["connects"] <= 10
        assert {type(answer) for answer in await waiting} == {NotProcessed}

    there.run(test)


# --- flow -----------------------------------------------------------------------------------------------------------


def test_the_stream_limit_may_fall_to_one_and_rise_again(there: Bench, simulator: Simulator) -> None:
    changes = (
        SettingsChange(after_requests=300, max_concurrent_streams=1),
        SettingsChange(after_requests=330, max_concurrent_streams=1000),
        SettingsChange(after_requests=600, initial_window_size=10, max_frame_size=20_000),
        SettingsChange(after_requests=900, initial_window_size=100_000, header_table_size=0),
    )
    simulator.control.set_scenario(Scenario(settings_changes=changes))
    assert there.send(pushes(1500)) == [Accepted()] * 1500
    assert simulator.control.counters().connections_opened == 1


def test_a_limit_of_no_streams_leaves_pushes_unwritten_at_their_deadline(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(settings=Settings(streams_before_auth=0)))
    assert there.send(pushes(20), timeout=0.5) == [NotProcessed(cause="timeout: never written")] * 20


def test_a_window_that_never_opens_leaves_most_pushes_unwritten(there: Bench, simulator: Simulator) -> None:
    settings = Settings(window_updates=False, streams_before_auth=1000)
    simulator.control.set_scenario(Scenario(settings=settings))
    answers = Counter(type(answer) for answer in there.send(pushes(1500), timeout=2.0))
    assert sum(simulator.control.accepted_counts().values()) == answers[Accepted]
    assert answers[NotProcessed] > 300
    assert answers[Unknown] < 10


def test_ready_holds_back_whoever_sends_too_much(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(latency_ms=20))

    async def test() -> None:
        client = there.client(apns_connections=1)
        backlog, waiting = 0, []
        for _ in range(100):
            await client.ready()
            waiting.append(client.send(pushes(64), timeout=10))
            backlog = max(backlog, client.snapshot().backlog)
        assert backlog <= 600
        for part in waiting:
            assert await part == [Accepted()] * 64

    there.run(test)


def test_who_does_not_wait_is_turned_away_at_a_limit(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(settings=Settings(streams_before_auth=0)))

    async def test() -> None:
        client = there.client()
        first = client.send(pushes(15_000), timeout=1)
        (answer, *_) = await client.send(pushes(15_000), timeout=1)
        assert "await ready()" in answer.cause
        await first

    there.run(test)


def test_more_connections_open_one_by_one_when_all_streams_are_taken(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(settings=Settings(max_concurrent_streams=5), latency_ms=20))

    async def test() -> None:
        client = there.client(apns_connections=3)
        opened = set()
        waiting = client.send(pushes(500), timeout=20)
        while client.snapshot().in_flight or client.snapshot().backlog:
            opened.add(client.snapshot().connections)
            await asyncio.sleep(0)  # each step of the loop is seen
        assert await waiting == [Accepted()] * 500
        assert opened >= {1, 2, 3}

    there.run(test)
    assert simulator.control.counters().connections_opened == 3


def test_one_connection_stays_alone_while_the_limit_is_one(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(settings=Settings(max_concurrent_streams=1), latency_ms=5))
    assert there.send(pushes(60)) == [Accepted()] * 60
    assert simulator.control.counters().connections_opened == 1


def test_goaways_again_and_again_lose_no_push_and_double_none(there: Bench, simulator: Simulator) -> None:
    goaway = GoAway(after_requests=(50, 150), above=10, close_after_ms=200)
    simulator.control.set_scenario(Scenario(goaway=goaway))
    sent = pushes(1000)
    answers = there.send(sent, timeout=20)
    delivered = simulator.control.accepted_counts()
    for each, answer in zip(sent, answers, strict=True):
        assert isinstance(answer, Accepted | NotProcessed)
        assert delivered.get(each.token, 0) == (1 if isinstance(answer, Accepted) else 0)


def test_a_connection_with_a_hundred_missed_deadlines_is_retired(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(rules=(Rule(prefix="", behaviour=Behaviour.ANSWER_LOST, tries=0),)))
    simulator.control.add_rules([Rule(prefix="00000000", behaviour=Behaviour.ACCEPTED)])

    async def test() -> None:
        client = there.client()
        assert await client.send([push("00" * 32)], timeout=5) == [Accepted()]
        lost = await client.send([push("ff" + os.urandom(31).hex()) for _ in range(120)], timeout=0.3)
        assert set(lost) == {Unknown(cause="timeout")}
        assert await client.send([push("00" * 32)], timeout=5) == [Accepted()]

    there.run(test)
    assert simulator.control.counters().connections_opened == 2


def test_a_peer_that_went_silent_is_noticed_by_a_ping(
    there: Bench, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with _relay(simulator.url) as (url, freeze):
            there.url = url
            client = there.client()
            assert await client.send([push()], timeout=5) == [Accepted()]
            monkeypatch.setattr(Wire, "STALLED", 0.2)
            monkeypatch.setattr(Wire, "PING_TIMEOUT", 0.2)
            freeze()
            (answer,) = await client.send([push()], timeout=10)
            assert answer == Unknown(cause="connection lost: the peer does not answer any more")
            assert client.snapshot().counts["unanswered"] == 1  # silence, for whoever judges the credential

    there.run(test)


def test_giving_up_waiting_disturbs_nothing(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(latency_ms=50, settings=Settings(streams_before_auth=1000)))

    async def test() -> None:
        client = there.client()
        sent = pushes(50)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.send(sent, timeout=5), 0.001)
        assert await client.send(pushes(50), timeout=5) == [Accepted()] * 50
        assert all(simulator.control.accepted_counts().get(each.token) == 1 for each in sent)

    there.run(test)


def test_nothing_stays_behind_after_many_pushes(there: Bench, simulator: Simulator) -> None:
    shares = {"bad": 0.1, "refused": 0.1, "reset": 0.1, "silent": 0.05}
    simulator.control.set_scenario(Scenario(shares=shares))  # type: ignore[arg-type]

    async def test() -> None:
        client = there.client()
        for _ in range(5):
            await client.send(pushes(400), timeout=0.5)
        assert isinstance(client, ApnsClient)
        pool = client._pool
        assert not client._open
        assert not pool._backlog
        assert all(not wire._streams and not wire._queue for wire in pool.connections)
        assert not any(client._deadlines._buckets.values())

    there.run(test)


# --- closing --------------------------------------------------------------------------------------------------------


def test_closing_waits_for_answers_and_gives_back_what_was_not_written(there: Bench, simulator: Simulator) -> None:
    sent = pushes(30)
    late = Rule(tokens=tuple(each.token for each in sent), latency_ms=1000)
    simulator.control.set_scenario(Scenario(rules=(late,), settings=Settings(max_concurrent_streams=10)))

    async def test() -> None:
        client = there.client(apns_connections=1)
        await client.send([push()], timeout=5)
        waiting = client.send(sent, timeout=20)
        while client.snapshot().in_flight < 10:
            await asyncio.sleep(0)
        await client.close(timeout=20)
        answers = Counter(await waiting)
        assert answers == {Accepted(): 10, NotProcessed(cause="closed"): 20}
        assert await client.send([push()], timeout=1) == [NotProcessed(cause="closed")]

    there.run(test)


def test_closing_does_not_wait_longer_than_it_may(there: Bench, simulator: Simulator) -> None:
    token = push().token
    simulator.control.add_rules([Rule(tokens=(token,), behaviour=Behaviour.SILENT)])

    async def test() -> None:
        client = there.client()
        waiting = client.send([push(token)], timeout=30)
        while not simulator.control.counters().requests:
            await asyncio.sleep(0.01)
        await client.close(timeout=0.1)
        assert await waiting == [Unknown(cause="closed")]

    there.run(test)


# --- ways to the server ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def _relay(url: str) -> AsyncIterator[tuple[str, object]]:
    """A relay in front of the server that can stop passing anything on."""
    host, port = url.removeprefix("https://").rsplit(":", 1)
    frozen = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if not frozen.is_set():
                writer.write(data)
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}", frozen.set
    finally:
        server.close()


@asynccontextmanager
async def _proxy(*, answer: bytes | None = None, wants: str | None = None) -> AsyncIterator[tuple[int, list[str]]]:
    """An HTTP CONNECT proxy that notes what it was asked; `answer` is said instead of connecting (empty: nothing)."""
    asked: list[str] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(head)
        said = answer
        if wants is not None and f"Basic {base64.b64encode(wants.encode()).decode()}" not in head:
            said = b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n"
        if said is not None:
            writer.write(said)
            await reader.read() if not said else writer.close()
            return
        host, port = head.split(" ")[1].rsplit(":", 1)
        other_reader, other_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        writer.write(b"HTTP/1.1 200 OK\r\nX-Proxy: yes\r\n\r\n")
        await asyncio.gather(pump(reader, other_writer), pump(other_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()


def test_a_proxy_with_authentication_is_used(there: Bench) -> None:
    async def test() -> None:
        async with _proxy(wants="user:p@ss:word") as (port, asked):
            url = SecretStr(f"http://user:p%40ss%3Aword@127.0.0.1:{port}")
            assert await there.client(apns_proxy_url=url).send(pushes(50), timeout=5) == [Accepted()] * 50
            assert len(asked) == 1
            assert asked[0].startswith(f"CONNECT {there.url.removeprefix('https://')} HTTP/1.1")

    there.run(test)


@pytest.mark.parametrize(
    ("answer", "user", "words"),
    [
        (None, "user:wrong@", "refused the user and password"),
        (None, "", "asks for a user and password"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "", "does not connect to"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "", "does not answer like an HTTP proxy"),
        (b"", "", "did not answer within"),
    ],
)
def test_a_proxy_that_refuses_is_named_and_its_password_is_not(
    there: Bench, answer: bytes | None, user: str, words: str
) -> None:
    async def test() -> str:
        async with _proxy(answer=answer, wants="user:right" if answer is None else None) as (port, _):
            url = SecretStr(f"http://{user}127.0.0.1:{port}")
            client = there.client(apns_proxy_url=url, apns_connect_timeout=0.3 if answer == b"" else 5.0)
            (found,) = await client.send([push()], timeout=5)
            return str(found.cause)

    said = there.run(test)
    assert words in said
    assert "wrong" not in said


def test_ipv6_works(bench: Bench, tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with Simulator(SimulatorConfig(host="::1", directory=tmp_path / "simulator", control_port=None)) as simulator:
        assert bench.at(simulator).send(pushes(5)) == [Accepted()] * 5


# --- credentials ----------------------------------------------------------------------------------------------------


def test_a_certificate_pushes_without_a_provider_token(there: Bench, simulator: Simulator, tmp_path: Path) -> None:
    file = simulator.client_certificate(APP, tmp_path / "push.pem")
    ref = CredentialRef(kind=CredentialKind.CERTIFICATE, environment=Environment.PRODUCTION, file=str(file))

    async def test() -> None:
        assert await there.client(ref).send(pushes(20), timeout=5) == [Accepted()] * 20

    there.run(test)
    assert simulator.control.counters().provider_tokens == 0


def test_a_certificate_that_is_replaced_gets_new_connections(
    there: Bench, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sender.apns.client._LOOK_EVERY", 0.0)
    file = simulator.client_certificate("com.example.other", tmp_path / "push.pem")
    ref = CredentialRef(kind=CredentialKind.CERTIFICATE, environment=Environment.PRODUCTION, file=str(file))

    async def test() -> None:
        client = there.client(ref)
        (before,) = await client.send([push()], timeout=5)
        assert isinstance(before, Rejected)
        file.write_text("broken")
        (still,) = await client.send([push()], timeout=5)
        assert still == before
        assert "PEM" in client.fault or "p12" in client.fault
        simulator.client_certificate(APP, file)
        assert await client.send([push()], timeout=5) == [Accepted()]

    there.run(test)


def test_one_provider_token_serves_all_connections(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(settings=Settings(max_concurrent_streams=5), latency_ms=20))
    assert there.send(pushes(500), timeout=20) == [Accepted()] * 500
    counters = simulator.control.counters()
    assert counters.connections_opened > 1
    assert counters.provider_tokens == 1


@pytest.fixture
def _look_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sender.apns.provider_token._LOOK_EVERY", 0.0)


def replace_key(ref: CredentialRef) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    Path(ref.file).write_bytes(key.private_bytes(*form))


@pytest.mark.usefixtures("_look_always")
def test_a_replaced_key_is_taken_up_without_a_new_connection(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(latency_ms=50))

    async def test() -> None:
        client = there.client()
        await client.send([push()], timeout=5)
        waiting = client.send(pushes(30), timeout=5)
        await asyncio.sleep(0.02)
        replace_key(there.ref)
        later = client.send(pushes(30), timeout=5)
        assert await waiting + await later == [Accepted()] * 60

    there.run(test)
    counters = simulator.control.counters()
    assert (counters.provider_tokens, counters.connections_opened) == (2, 1)


@pytest.mark.usefixtures("_look_always")
def test_too_many_provider_token_updates_freeze_the_token(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(provider_tokens=ProviderTokens(per_team=1)))

    async def test() -> None:
        client = there.client()
        assert await client.send([push()], timeout=5) == [Accepted()]
        replace_key(there.ref)
        (answer,) = await client.send([push()], timeout=5)
        assert answer == Rejected(status=429, reason="TooManyProviderTokenUpdates")
        assert client.tokens._frozen

    there.run(test)


def test_renewing_takes_the_next_pushes_to_a_new_connection(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(latency_ms=100))

    async def test() -> None:
        client = there.client()
        await client.send([push()], timeout=5)
        waiting = client.send(pushes(10), timeout=5)
        await asyncio.sleep(0.02)
        await client.renew()
        assert await client.send(pushes(10), timeout=5) + await waiting == [Accepted()] * 20

    there.run(test)
    assert simulator.control.counters().connections_opened == 2


def test_apps_that_share_a_key_share_its_client(there: Bench) -> None:
    async def test() -> None:
        clients = Clients(there.settings())
        first = clients.get(there.ref)
        assert clients.get(there.ref) is first
        assert await first.send([push()], timeout=5) == [Accepted()]
        await clients.renew(there.ref)
        assert list(clients.snapshots()) == [there.ref.identity]
        await clients.close(timeout=1)
        assert await clients.get(there.ref).send([push()], timeout=1) == [NotProcessed(cause="closed")]

    there.run(test)


def test_an_unusable_credential_is_an_error_and_not_an_answer(bench: Bench) -> None:
    Path(bench.ref.file).unlink()

    async def test() -> None:
        with pytest.raises(CredentialError, match="no such file"):
            bench.client()

    bench.run(test)
