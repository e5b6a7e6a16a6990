"""What a token is answered: by its hash, by a rule, by a storm, and what is remembered of it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from sender.model import Environment
from sender.simulator import (
    Behaviour,
    Rule,
    Scenario,
    Shares,
    Simulator,
    SimulatorConfig,
    Storm,
    behaviour_of,
)
from tests.contract.raw_client import BODY, TOPIC, Answer, RawClient, token


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorConfig(keep_payloads=True)) as running:
        yield running


@pytest.fixture
def client(simulator: Simulator) -> Iterator[RawClient]:
    simulator.control.set_scenario(Scenario())
    simulator.control.reset()
    with RawClient(simulator.url, simulator.ca_file) as connected:
        assert connected.one(token(0)).status == 200  # authenticated: a thousand streams from here on
        simulator.control.reset()
        yield connected


def push_all(client: RawClient, tokens: list[str]) -> list[Answer]:
    streams = [client.push(device) for device in tokens]
    client.wait()
    return [client.answers[stream] for stream in streams]


def test_answers_are_those_that_the_pure_function_foretells(simulator: Simulator, client: RawClient) -> None:
    shares = Shares(unregistered=0.2, bad=0.1, wrong_topic=0.1, throttled=0.1, other_environment=0.1)
    simulator.control.set_scenario(Scenario(shares=shares, seed=5))
    expected = {
        Behaviour.ACCEPTED: "",
        Behaviour.UNREGISTERED: "Unregistered",
        Behaviour.BAD: "BadDeviceToken",
        Behaviour.WRONG_TOPIC: "DeviceTokenNotForTopic",
        Behaviour.THROTTLED: "TooManyRequests",
        Behaviour.OTHER_ENVIRONMENT: "BadDeviceToken",
    }
    tokens = [token(number) for number in range(80)]
    behaviours = [behaviour_of(device, shares, seed=5) for device in tokens]
    assert set(behaviours) == set(expected)
    assert [answer.reason for answer in push_all(client, tokens)] == [expected[one] for one in behaviours]
    again = [expected[one] if one is not Behaviour.THROTTLED else "" for one in behaviours]
    assert [answer.reason for answer in push_all(client, tokens)] == again


def test_tokens_of_the_other_environment_are_good_in_the_sandbox(simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(shares=Shares(other_environment=1)))
    with RawClient(simulator.sandbox_url, simulator.ca_file) as client:
        assert client.one().status == 200
    with RawClient(simulator.url, simulator.ca_file) as client:
        assert client.one().reason == "BadDeviceToken"


def test_all_tokens_may_belong_to_one_environment(simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(token_environment=Environment.SANDBOX))
    with RawClient(simulator.sandbox_url, simulator.ca_file) as client:
        assert client.one().status == 200
    with RawClient(simulator.url, simulator.ca_file) as client:
        assert client.one().reason == "BadDeviceToken"


def test_a_throttled_token_is_accepted_after_its_tries(simulator: Simulator, client: RawClient) -> None:
    simulator.control.set_scenario(Scenario(shares=Shares(throttled=1), tries=2))
    assert [client.one().status for _ in range(4)] == [429, 429, 200, 200]


def test_a_fault_without_an_end_stays(simulator: Simulator, client: RawClient) -> None:
    simulator.control.set_scenario(Scenario(shares=Shares(errors=1), tries=0))
    assert all(client.one().status in {500, 503} for _ in range(4))


def test_410_carries_milliseconds_now_long_ago_or_as_the_rule_says(simulator: Simulator, client: RawClient) -> None:
    future = int(time.time() * 1000) + 86_400_000
    simulator.control.set_rules(
        [
            Rule(tokens=(token(1),), behaviour=Behaviour.UNREGISTERED),
            Rule(tokens=(token(2),), behaviour=Behaviour.STALE_UNREGISTERED),
            Rule(tokens=(token(3),), behaviour=Behaviour.EXPIRED_TOKEN, timestamp=1_600_000_000_123),
            Rule(tokens=(token(4),), behaviour=Behaviour.UNREGISTERED, timestamp=future),
        ]
    )
    before = int(time.time() * 1000)
    answers = push_all(client, [token(number) for number in (1, 2, 3, 4)])
    after = int(time.time() * 1000)
    assert [answer.status for answer in answers] == [410] * 4
    assert before - 1 <= answers[0].json["timestamp"] <= after
    assert answers[1].json["timestamp"] < before - 300 * 86_400_000
    assert answers[2].json == {"reason": "ExpiredToken", "timestamp": 1_600_000_000_123}
    assert answers[3].json["timestamp"] == future


def test_rules_say_to_which_app_and_environment_a_token_belongs(simulator: Simulator, client: RawClient) -> None:
    simulator.control.set_rules(
        [
            Rule(prefix="000000", topic="com.example.other"),
            Rule(tokens=(token(1),), environment=Environment.SANDBOX),
            Rule(tokens=(token(2),), topic=TOPIC, environment=Environment.PRODUCTION),
        ]
    )
    reasons = [answer.reason for answer in push_all(client, [token(1), token(2), token(3), token(0x12345678)])]
    assert reasons == ["BadDeviceToken", "", "DeviceTokenNotForTopic", ""]


def test_a_rule_may_answer_anything(simulator: Simulator, client: RawClient) -> None:
    simulator.control.set_rules(
        [
            Rule(tokens=(token(1),), status=418, reason="IAmATeapot"),
            Rule(tokens=(token(2),), status=410),
            Rule(tokens=(token(3),), status=503, reason="Shutdown", tries=1),
        ]
    )
    odd, bare, passing = push_all(client, [token(1), token(2), token(3)])
    assert (odd.status, odd.reason) == (418, "IAmATeapot")
    assert (bare.status, bare.body) == (410, b"")
    assert (passing.status, passing.reason) == (503, "Shutdown")
    assert client.one(token(3)).status == 200


def test_rules_can_be_added_and_replaced(simulator: Simulator, client: RawClient) -> None:
    simulator.control.set_rules([Rule(tokens=(token(1),), behaviour=Behaviour.BAD)])
    simulator.control.add_rules([Rule(tokens=(token(2),), behaviour=Behaviour.WRONG_TOPIC)])
    assert [answer.status for answer in push_all(client, [token(1), token(2)])] == [400, 400]
    simulator.control.set_rules([])
    assert [answer.status for answer in push_all(client, [token(1), token(2)])] == [200, 200]


def test_a_storm_comes_and_goes_by_the_number_of_requests(simulator: Simulator, client: RawClient) -> None:
    simulator.control.set_scenario(Scenario(storms=(Storm(status=429, after_requests=2, for_requests=3),)))
    assert [client.one(token(number)).status for number in range(7)] == [200, 200, 429, 429, 429, 200, 200]


def test_a_storm_ends_with_its_time_and_takes_a_share_of_the_tokens(simulator: Simulator, client: RawClient) -> None:
    tokens = [token(number) for number in range(100)]
    simulator.control.set_scenario(Scenario(storms=(Storm(status=503, share=0.5, for_seconds=2.0),)))
    struck = [answer.reason for answer in push_all(client, tokens)]
    assert {"", "ServiceUnavailable"} == set(struck)
    end = time.monotonic() + 30
    while {answer.status for answer in push_all(client, tokens)} != {200}:
        assert time.monotonic() < end


def test_everything_received_is_remembered_with_what_it_carried(simulator: Simulator, client: RawClient) -> None:
    identifier = b"8F0A1C2E-1111-4222-8333-444455556666"
    client.one(
        token(7), apns_id=identifier, apns_expiration=b"1800000000", apns_priority=b"5", apns_collapse_id=b"sale"
    )
    client.one(token(8))
    (seen,) = simulator.received(token(7))
    assert seen.apns_id == identifier.decode().lower()
    assert (seen.status, seen.reason, seen.delivered, seen.environment) == (200, "", True, Environment.PRODUCTION)
    assert (seen.topic, seen.push_type, seen.priority) == (TOPIC, "alert", 5)
    assert (seen.expiration, seen.collapse_id, seen.payload) == (1_800_000_000, "sale", BODY)
    assert abs(seen.at - time.time()) < 60
    assert [one.token for one in simulator.received()] == [token(7), token(8)]
    assert simulator.expirations() == {1_800_000_000, None}


def test_counts_tell_how_often_a_device_got_something(simulator: Simulator, client: RawClient) -> None:
    simulator.control.set_rules([Rule(tokens=(token(3),), behaviour=Behaviour.BAD)])
    push_all(client, [token(1), token(1), token(2), token(3)])
    assert simulator.accepted_counts() == {token(1): 2, token(2): 1}
    counters = simulator.counters()
    assert (counters.requests, counters.delivered) == (4, 3)
    assert counters.by_status == {200: 3, 400: 1}
    assert counters.by_reason == {"": 3, "BadDeviceToken": 1}
    assert sum(counters.per_second.values()) == 4
    assert counters.connections_open >= 1


def test_a_simulator_that_only_counts_gives_the_same_counts_and_keeps_no_records() -> None:
    with (
        Simulator(SimulatorConfig(record="counts")) as simulator,
        RawClient(simulator.url, simulator.ca_file) as client,
    ):
        for number in (1, 1, 2):
            client.one(token(number), apns_expiration=b"5")
        assert simulator.accepted_counts() == {token(1): 2, token(2): 1}
        assert simulator.expirations() == {5}
        assert simulator.received() == []


def test_tokens_and_payloads_never_show_in_what_is_printed(simulator: Simulator, client: RawClient) -> None:
    client.one(token(7))
    (seen,) = simulator.received(token(7))
    assert token(7) not in repr(seen)
    assert "hello" not in repr(seen)
