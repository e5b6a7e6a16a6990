"""The simulator refuses what APNs refuses, with Apple's statuses and reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sender.errors import CredentialError
from sender.model import Environment
from sender.simulator import ProviderTokens, Scenario, Simulator, SimulatorConfig, load_provider_key
from tests.contract.raw_client import KEY, TOPIC, RawClient, provider_token, token

ID = "8f0a1c2e-1111-4222-8333-44445555AAAA"


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorConfig(topics=[TOPIC])) as running:
        yield running


@pytest.fixture
def client(simulator: Simulator) -> Iterator[RawClient]:
    with RawClient(simulator.url, simulator.ca_file) as connected:
        yield connected


def key_file(path: Path, key: Any) -> Path:
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path


def test_a_push_that_is_in_order_is_accepted_and_its_id_comes_back(client: RawClient) -> None:
    answer = client.one(apns_id=ID.encode(), apns_expiration=b"1800000000", apns_priority=b"10", apns_collapse_id=b"x")
    assert answer.status == 200
    assert answer.headers[b"apns-id"] == ID.encode()
    assert answer.body == b""
    assert b"apns-unique-id" not in answer.headers


def test_the_sandbox_also_gives_a_unique_id(simulator: Simulator) -> None:
    with RawClient(simulator.sandbox_url, simulator.ca_file) as client:
        answer = client.one()
    assert (answer.status, len(answer.headers[b"apns-unique-id"])) == (200, 36)


def test_a_push_without_an_id_gets_one(client: RawClient) -> None:
    assert len(client.one().headers[b"apns-id"]) == 36


def test_longer_tokens_and_upper_case_are_tokens_too(client: RawClient) -> None:
    assert client.one("Ab" * 80).status == 200


REFUSED: list[tuple[str, dict[str, Any], int, str]] = [
    ("another method", {"method": b"GET"}, 405, "MethodNotAllowed"),
    ("another path", {"path": b"/4/device/" + token(1).encode()}, 404, "BadPath"),
    ("no token", {"device": ""}, 400, "MissingDeviceToken"),
    ("a token that is no hex", {"device": "x" * 64}, 400, "BadDeviceToken"),
    ("a token of odd length", {"device": "a" * 65}, 400, "BadDeviceToken"),
    ("a token that is too short", {"device": "ab"}, 400, "BadDeviceToken"),
    ("an id that is no UUID", {"apns_id": b"42"}, 400, "BadMessageId"),
    ("an expiration that is no number", {"apns_expiration": b"tomorrow"}, 400, "BadExpirationDate"),
    ("a negative expiration", {"apns_expiration": b"-1"}, 400, "BadExpirationDate"),
    ("a priority that there is not", {"apns_priority": b"7"}, 400, "BadPriority"),
    ("a background push in a hurry", {"apns_push_type": b"background", "apns_priority": b"10"}, 400, "BadPriority"),
    ("a push type that there is not", {"apns_push_type": b"shout"}, 400, "InvalidPushType"),
    ("a collapse id of 65 bytes", {"apns_collapse_id": "é".encode() * 32 + b"x"}, 400, "BadCollapseId"),
    ("no topic", {"apns_topic": None}, 400, "MissingTopic"),
    ("a topic of odd letters", {"apns_topic": b"com example"}, 400, "BadTopic"),
    ("a VoIP push to the plain topic", {"apns_push_type": b"voip"}, 400, "BadTopic"),
    ("a topic that is not served", {"apns_topic": b"com.example.other"}, 400, "TopicDisallowed"),
    ("no body", {"body": b""}, 400, "PayloadEmpty"),
    ("an empty object", {"body": b"{}"}, 400, "PayloadEmpty"),
    ("a body that is no JSON", {"body": b'{"aps"'}, 400, "PayloadEmpty"),
    ("a body of 4097 bytes", {"body": json.dumps({"a": "x" * 4088}).encode()}, 413, "PayloadTooLarge"),
    ("a header twice", {"repeat": ((b"apns-push-type", b"alert"),)}, 400, "DuplicateHeaders"),
    ("no provider token", {"authorization": None}, 403, "MissingProviderToken"),
    ("a provider token that is none", {"authorization": b"bearer x.y.z"}, 403, "InvalidProviderToken"),
    ("another algorithm", {"authorization": provider_token(algorithm="HS256")}, 403, "InvalidProviderToken"),
    ("a short key id", {"authorization": provider_token(kid="SHORT")}, 403, "InvalidProviderToken"),
    ("a provider token from the future", {"authorization": provider_token(age=-86_400)}, 403, "InvalidProviderToken"),
    ("a provider token of 61 minutes", {"authorization": provider_token(age=3660)}, 403, "ExpiredProviderToken"),
]


@pytest.mark.parametrize(("options", "status", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_apns_refuses(client: RawClient, options: dict[str, Any], status: int, reason: str) -> None:
    answer = client.one(**options)
    assert (answer.status, answer.json) == (status, {"reason": reason})
    assert len(answer.headers[b"apns-id"]) == 36


@pytest.mark.parametrize(
    ("push_type", "suffix", "size"),
    [
        ("alert", "", 4096),
        ("background", "", 4096),
        ("location", ".location-query", 4096),
        ("voip", ".voip", 5120),
        ("complication", ".complication", 4096),
        ("fileprovider", ".pushkit.fileprovider", 4096),
        ("liveactivity", ".push-type.liveactivity", 4096),
        ("pushtotalk", ".voip-ptt", 4096),
        ("widgets", ".push-type.widgets", 4096),
        ("controls", ".push-type.controls", 4096),
    ],
)
def test_every_push_type_has_its_topic_and_its_size(client: RawClient, push_type: str, suffix: str, size: int) -> None:
    headers = {"apns_push_type": push_type.encode(), "apns_topic": (TOPIC + suffix).encode(), "apns_priority": b"5"}
    largest = json.dumps({"a": "x" * (size - 9)}).encode()
    assert len(largest) == size
    assert client.one(body=largest, **headers).status == 200
    assert client.one(body=largest.replace(b"x", b"xx", 1), **headers).reason == "PayloadTooLarge"


def test_a_registered_key_is_checked_and_others_are_refused(tmp_path: Path) -> None:
    file = key_file(tmp_path / "AuthKey_KEY1234567.p8", KEY)
    known = load_provider_key(file, team_id="TEAM123456", environments=[Environment.PRODUCTION])
    stranger = ec.generate_private_key(ec.SECP256R1())
    with Simulator(SimulatorConfig(keys=[known])) as simulator:
        for authorization, reason in (
            (provider_token(), ""),
            (provider_token(key=stranger), "InvalidProviderToken"),
            (provider_token(team="TEAM999999"), "InvalidProviderToken"),
            (provider_token(kid="KEY9999999"), "InvalidProviderToken"),
        ):
            with RawClient(simulator.url, simulator.ca_file) as client:
                assert client.one(authorization=authorization).reason == reason
        with RawClient(simulator.sandbox_url, simulator.ca_file) as client:
            assert client.one().reason == "BadEnvironmentKeyIdInToken"


def test_a_key_file_that_apns_could_not_use_is_refused_with_all_its_faults(tmp_path: Path) -> None:
    file = key_file(tmp_path / "key.p8", rsa.generate_private_key(65537, 2048))
    with pytest.raises(CredentialError) as caught:
        load_provider_key(file, team_id="TEAM")
    assert len(caught.value.faults) == 3


def test_one_connection_serves_one_key(client: RawClient) -> None:
    assert client.one().status == 200
    assert client.one(authorization=provider_token(kid="KEY7654321")).reason == "UnrelatedKeyIdInToken"
    assert client.one().status == 200


def test_too_many_provider_tokens_on_a_connection_are_refused_and_the_first_ones_stay_good() -> None:
    rules = ProviderTokens(per_connection=2, per_team=0)
    with (
        Simulator(SimulatorConfig(scenario=Scenario(provider_tokens=rules))) as simulator,
        RawClient(simulator.url, simulator.ca_file) as client,
    ):
        shown = [provider_token(age=age) for age in (0, 10, 20)]
        answers = [client.one(authorization=one) for one in shown]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[2].reason == "TooManyProviderTokenUpdates"
        assert client.one(authorization=shown[0]).status == 200


def test_too_many_provider_tokens_of_a_team_are_refused_on_whatever_connection() -> None:
    rules = ProviderTokens(per_connection=0, per_team=2)
    reasons = []
    with Simulator(SimulatorConfig(scenario=Scenario(provider_tokens=rules))) as simulator:
        for age in (0, 10, 20):
            with RawClient(simulator.url, simulator.ca_file) as client:
                reasons.append(client.one(authorization=provider_token(age=age)).reason)
        with RawClient(simulator.url, simulator.ca_file) as client:
            other_team = provider_token(team="TEAM999999")
            reasons.append(client.one(authorization=other_team).reason)
        assert simulator.counters().provider_tokens == 4
    assert reasons == ["", "", "TooManyProviderTokenUpdates", ""]


def test_a_client_certificate_stands_for_its_own_topic(simulator: Simulator, tmp_path: Path) -> None:
    certificate = simulator.client_certificate(TOPIC, tmp_path / "push.pem")
    with RawClient(simulator.url, simulator.ca_file, certificate=certificate) as client:
        assert client.one(authorization=None).status == 200
        assert client.settings[0][3] == 1000
        assert client.one(authorization=None, apns_topic=None).status == 200
        assert client.one(authorization=None, apns_topic=b"com.example.other").reason == "TopicDisallowed"
