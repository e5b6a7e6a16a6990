"""The simulator misbehaves exactly as its scenario says: streams, connections, handshakes, SETTINGS."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import pytest

from sender.simulator import (
    Behaviour,
    Drop,
    GoAway,
    Outage,
    OutageKind,
    Rule,
    Scenario,
    Settings,
    SettingsChange,
    Shares,
    Simulator,
    SimulatorConfig,
)
from tests.contract.raw_client import RawClient, token

_STREAMS, _WINDOW, _FRAME = 3, 4, 5  # SETTINGS


def running(**scenario: Any) -> Simulator:
    return Simulator(SimulatorConfig(scenario=Scenario(**scenario)))


def connected(simulator: Simulator) -> RawClient:
    return RawClient(simulator.url, simulator.ca_file)


@pytest.fixture
def start() -> Any:
    """Start a simulator with a scenario, and connect to it."""
    with ExitStack() as stack:

        def begin(**scenario: Any) -> tuple[Simulator, RawClient]:
            simulator = stack.enter_context(running(**scenario))
            return simulator, stack.enter_context(connected(simulator))

        yield begin


Start = Callable[..., tuple[Simulator, RawClient]]


def until(client: RawClient, happened: Callable[[], bool]) -> None:
    """Read what the server sends until something has happened."""
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        client.wait(0.02)
        client.settle()


# --- SETTINGS -------------------------------------------------------------------------------------------------------


def test_streams_are_one_until_a_provider_token_was_accepted(start: Start) -> None:
    _, client = start()
    assert client.one(authorization=b"bearer nonsense").status == 403
    assert [settings.get(_STREAMS) for settings in client.settings] == [1]
    assert client.one().status == 200
    client.settle()
    assert [settings.get(_STREAMS) for settings in client.settings] == [1, 1000]


def test_more_streams_than_allowed_are_refused(start: Start) -> None:
    _, client = start(settings=Settings(streams_before_auth=1))
    streams = [client.push(token(number)) for number in range(3)]  # before the SETTINGS were read
    client.wait()
    assert client.answers[streams[0]].status == 200
    assert [client.answers[stream].reset for stream in streams[1:]] == [7, 7]


def test_settings_change_after_requests_after_seconds_and_on_demand(start: Start) -> None:
    simulator, client = start(
        settings_changes=(
            SettingsChange(after_requests=2, max_concurrent_streams=1),
            SettingsChange(after_seconds=0.3, initial_window_size=1000),
        )
    )
    client.one()
    client.one()
    client.settle()
    assert {_STREAMS: 1} in client.settings
    until(client, lambda: {_WINDOW: 1000} in client.settings)
    assert simulator.control.change_settings(SettingsChange(after_seconds=0, max_frame_size=20_000)) == 1
    client.settle()
    assert client.settings[-1] == {_FRAME: 20_000}


def test_a_small_window_only_slows_large_payloads_down(start: Start) -> None:
    _, client = start(settings=Settings(initial_window_size=100))
    client.settle()
    assert client.one(body=b'{"aps":"' + b"x" * 3000 + b'"}').status == 200


def test_a_server_that_gives_no_window_back_lets_senders_run_dry(start: Start) -> None:
    simulator, client = start(settings=Settings(window_updates=False))
    client.one()
    for number in range(30):
        client.push(token(number), b'{"aps":"' + b"x" * 4000 + b'"}')
    until(client, lambda: simulator.counters().requests >= 10)
    client.wait(0.5)
    assert 10 <= simulator.counters().requests < 20  # 65,535 bytes are 16 such payloads


# --- Streams --------------------------------------------------------------------------------------------------------


def one_push(start: Start, behaviour: Behaviour, **rule: Any) -> tuple[Simulator, RawClient, int]:
    simulator, client = start(rules=(Rule(prefix="", behaviour=behaviour, **rule),), slow_ms=300)
    stream = client.push()
    client.wait(0.6 if behaviour in {Behaviour.SILENT, Behaviour.ANSWER_LOST} else 5.0)
    return simulator, client, stream


@pytest.mark.parametrize("code", [0, 2, 7, 8, 11])
def test_streams_are_reset_with_any_code(start: Start, code: int) -> None:
    simulator, client, stream = one_push(start, Behaviour.RESET, reset_code=code)
    answer = client.answers[stream]
    assert (answer.status, answer.reset, answer.closed) == (0, code, True)
    assert simulator.accepted_counts() == {}
    assert client.one().status == 200  # the connection is as good as before, and the fault has passed


def test_a_stream_is_reset_in_the_middle_of_its_answer(start: Start) -> None:
    simulator, client, stream = one_push(start, Behaviour.RESET_AFTER_HEADERS, reset_code=0)
    answer = client.answers[stream]
    assert (answer.status, answer.reset) == (200, 0)
    assert simulator.accepted_counts() == {token(1): 1}


def test_refused_streams_are_not_processed(start: Start) -> None:
    simulator, client, stream = one_push(start, Behaviour.REFUSED)
    assert client.answers[stream].reset == 7
    assert simulator.accepted_counts() == {}


@pytest.mark.parametrize(("behaviour", "delivered"), [(Behaviour.SILENT, {}), (Behaviour.ANSWER_LOST, {token(1): 1})])
def test_silence_is_delivered_or_not(start: Start, behaviour: Behaviour, delivered: dict[str, int]) -> None:
    simulator, client, stream = one_push(start, behaviour)
    answer = client.answers[stream]
    assert (answer.status, answer.closed, client.closed) == (0, False, False)
    assert simulator.accepted_counts() == delivered
    assert simulator.received()[0].reason == behaviour


def test_an_error_without_a_body(start: Start) -> None:
    _, client, stream = one_push(start, Behaviour.EMPTY_ERROR)
    answer = client.answers[stream]
    assert (answer.status, answer.body, answer.closed) == (503, b"", True)


def test_ids_missing_and_in_the_wrong_case(start: Start) -> None:
    simulator, client = start()
    simulator.control.set_rules(
        [
            Rule(tokens=(token(1),), behaviour=Behaviour.NO_APNS_ID),
            Rule(tokens=(token(2),), behaviour=Behaviour.UPPER_CASE_ID),
        ]
    )
    identifier = b"8f0a1c2e-1111-4222-8333-44445555aaaa"
    without, shouted = (client.one(token(number), apns_id=identifier) for number in (1, 2))
    assert (without.status, b"apns-id" in without.headers) == (200, False)
    assert (shouted.status, shouted.headers[b"apns-id"]) == (200, identifier.upper())


def test_slow_tokens_are_overtaken(start: Start) -> None:
    simulator, client = start(rules=(Rule(tokens=(token(1),), behaviour=Behaviour.SLOW),), slow_ms=400)
    client.one(token(0))
    slow = client.push(token(1))
    assert client.one(token(2)).status == 200
    order = [device.token for device in simulator.received()]
    assert order == [token(0), token(1), token(2)]
    assert client.answers[slow].closed


def test_latency_delays_every_answer_and_keeps_them_complete(start: Start) -> None:
    _, client = start(latency_ms=150, jitter_ms=50)
    client.one(token(0))
    streams = [client.push(token(number)) for number in range(1, 200)]
    began = time.monotonic()
    until(client, lambda: any(client.answers[stream].closed for stream in streams))
    assert time.monotonic() - began >= 0.15
    client.wait()
    assert {client.answers[stream].status for stream in streams} == {200}


# --- Connections ----------------------------------------------------------------------------------------------------


def test_goaway_leaves_streams_unanswered_on_both_sides_of_its_last_id(start: Start) -> None:
    goaway = GoAway(after_requests=10, above=3, unanswered=2, reason="Shutdown", close_after_ms=300)
    simulator, client = start(goaway=goaway)
    client.one(token(0))
    streams = [client.push(token(number)) for number in range(1, 10)]
    assert client.wait_closed()
    assert client.goaway is not None
    assert client.goaway.debug_data == b'{"reason":"Shutdown"}'
    assert client.goaway.last_stream_id == streams[5]
    assert [client.answers[stream].status for stream in streams] == [200] * 4 + [0] * 5
    delivered = simulator.accepted_counts()
    assert delivered == {token(number): 1 for number in range(7)}  # what lies above the last id was not processed
    assert [one.reason for one in simulator.received()][-5:] == ["answer_lost"] * 2 + ["above_goaway"] * 3


def test_goaway_comes_even_when_the_client_sends_no_more(start: Start) -> None:
    _, client = start(goaway=GoAway(after_requests=10, above=9, debug="plain words", hold_ms=100, close_after_ms=100))
    client.one(token(0))
    client.push(token(1))
    client.wait()
    client.wait_closed()
    assert client.goaway is not None
    assert (client.goaway.debug_data, client.goaway.last_stream_id) == (b"plain words", 1)


def test_goaway_may_take_only_the_first_connections(start: Start) -> None:
    simulator, first = start(goaway=GoAway(after_requests=1, connections=1, close_after_ms=0))
    assert first.one().status == 200
    assert first.wait_closed()
    with connected(simulator) as second:
        assert [second.one().status for _ in range(3)] == [200] * 3
        assert second.goaway is None


def test_the_seed_chooses_when_each_connection_gets_its_goaway() -> None:
    def survived() -> list[int]:
        counts = []
        with running(goaway=GoAway(after_requests=(2, 40), close_after_ms=0), seed=9) as simulator:
            for _ in range(5):
                with connected(simulator) as client:
                    served = 0
                    while client.goaway is None and client.one().status == 200:
                        served += 1
                        client.settle()
                    counts.append(served)
        return counts

    first = survived()
    assert len(set(first)) > 1
    assert survived() == first


@pytest.mark.parametrize("delivered", [False, True])
def test_connections_are_cut_before_or_after_a_request_was_processed(start: Start, delivered: bool) -> None:
    simulator, client = start(drop=Drop(after_requests=3, delivered=delivered, connections=1))
    answers = [client.one(token(number)) for number in range(3)]
    assert client.closed
    assert [answer.status for answer in answers] == [200, 200, 0]
    assert set(simulator.accepted_counts()) == {token(number) for number in range(2 + delivered)}
    with connected(simulator) as again:
        assert [again.one().status for _ in range(4)] == [200] * 4


@pytest.mark.parametrize("behaviour", [Behaviour.DROPPED_BEFORE, Behaviour.DROPPED_AFTER])
def test_single_tokens_cut_the_connection(start: Start, behaviour: Behaviour) -> None:
    simulator, client, stream = one_push(start, behaviour)
    assert client.closed
    assert client.answers[stream].status == 0
    assert simulator.counters().delivered == (behaviour is Behaviour.DROPPED_AFTER)


def test_goaway_drop_and_raw_bytes_on_demand(start: Start) -> None:
    simulator, client = start()
    client.one()
    assert simulator.control.send_raw(bytes.fromhex("00000a 99 00 00000000") + b"no_meaning") == 1  # unknown frame type
    assert client.one().status == 200
    assert simulator.control.goaway(reason="TooManyConnections", error_code=11, close_after_ms=50) == 1
    assert client.wait_closed()
    assert client.goaway is not None
    assert (client.goaway.error_code, client.goaway.last_stream_id) == (11, 3)
    with connected(simulator) as other:
        other.one()
        assert simulator.control.drop() == 1
        assert other.wait_closed()


def test_refused_connections_come_back_on_the_same_port() -> None:
    with running() as simulator, connected(simulator) as before:
        before.one()
        simulator.control.refuse(2.0)
        with pytest.raises(ConnectionRefusedError):
            connected(simulator)
        assert before.one().status == 200  # who was connected stays so
        wait_until_connected(simulator)


def wait_until_connected(simulator: Simulator) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            with connected(simulator) as client:
                assert client.one().status == 200
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (OutageKind.TLS_ALERT, ssl.SSLError),
        (OutageKind.WRONG_CERTIFICATE, ssl.SSLCertVerificationError),
        (OutageKind.RESET, OSError),
    ],
)
def test_the_first_handshakes_fail(kind: OutageKind, error: type[Exception]) -> None:
    with running(outages=(Outage(kind=kind, connections=2),)) as simulator:
        for _ in range(2):
            with pytest.raises(error):
                connected(simulator)
        with connected(simulator) as client:
            assert client.one().status == 200
        counters = simulator.counters()
        assert sum(counters.attempts_per_second.values()) == 3
        assert counters.connections_opened == 1


def test_a_handshake_that_never_begins() -> None:
    with running(outages=(Outage(kind=OutageKind.SILENT, connections=1),)) as simulator:
        host, port = simulator.url.removeprefix("https://").rsplit(":", 1)
        with socket.create_connection((host, int(port)), timeout=0.3) as plain, pytest.raises(TimeoutError):
            ssl.create_default_context(cafile=simulator.ca_file).wrap_socket(plain, server_hostname=host)
        with connected(simulator) as client:
            assert client.one().status == 200


def test_a_connection_closed_right_after_its_handshake() -> None:
    with running(outages=(Outage(kind=OutageKind.CLOSE, connections=1),)) as simulator:
        with connected(simulator) as client:
            assert client.wait_closed()
        with connected(simulator) as client:
            assert client.one().status == 200


def test_an_outage_may_cut_what_is_open() -> None:
    with running() as simulator, connected(simulator) as client:
        client.one()
        simulator.control.refuse(0.2, drop=True)
        assert client.wait_closed()
        wait_until_connected(simulator)


def test_a_client_that_does_not_speak_http2_is_sent_away(start: Start) -> None:
    simulator, _ = start()
    host, port = simulator.url.removeprefix("https://").rsplit(":", 1)
    context = ssl.create_default_context(cafile=simulator.ca_file)
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain, server_hostname=host) as old,
    ):
        old.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert old.recv(100) == b""


def test_ten_thousand_resets_by_the_client_do_not_end_the_connection(start: Start) -> None:
    simulator, client = start(shares=Shares(silent=1), tries=0)
    for number in range(10_000):
        client.push(token(number))
        client.cancel_open()
        if number % 500 == 0:
            client.settle()
    client.settle()
    simulator.control.set_scenario(Scenario())
    assert client.one().status == 200


def test_everything_stops_with_the_context() -> None:
    simulator = running()
    with simulator:
        url, directory = simulator.url, simulator.ca_file.parent
        stack: list[AbstractContextManager[RawClient]] = [connected(simulator) for _ in range(3)]
    host, port = url.removeprefix("https://").rsplit(":", 1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5).close()
    assert not directory.exists()
    for client in stack:
        with client as one:
            assert one.wait_closed()
