"""`sender push` against a simulated APNs: what went out, what came back, what it means."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from sender import InvalidInputError, MissingExtraError, NotFoundError, Payload, Sender
from sender.cli import app as cli
from sender.model import Environment, Rejected
from sender.push import RateLimitError, find_target, is_wrong_environment, other_environment, push
from sender.services import Services
from sender.settings import Settings
from sender.simulator import Behaviour, Rule, Scenario, Simulator, SimulatorConfig
from sender.store.database import Database
from tests.integration.campaign_rows import APP, add_device
from tests.integration.test_activity import bind

SANDBOX_TOKEN = "5a" * 32
GONE_TOKEN = "6b" * 32
GOOD_TOKEN = "7c" * 32
RULES = (
    Rule(tokens=(SANDBOX_TOKEN,), behaviour=Behaviour.OTHER_ENVIRONMENT),
    Rule(tokens=(GONE_TOKEN,), behaviour=Behaviour.UNREGISTERED),
)


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with Simulator(SimulatorConfig(scenario=Scenario(rules=RULES), keep_payloads=True)) as simulator:
        yield simulator


@pytest.fixture
def services(settings: Settings, simulator: Simulator, tmp_path: Path) -> Iterator[Services]:
    """Bound to the simulator, with an app that has a key for both environments."""
    bound = settings.model_copy(
        update={
            "apns_production_url": simulator.url,
            "apns_sandbox_url": simulator.sandbox_url,
            "apns_ca_file": simulator.ca_file,
        }
    )
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "AuthKey_ABCDEFGHIJ.p8").write_bytes(key)
    with Sender(settings=bound) as sender:
        sender.apps.add(APP, team_id="TEAM123456", key_file=tmp_path / "AuthKey_ABCDEFGHIJ.p8")
    services = Services(bound)
    yield services
    services.close()


def run(monkeypatch: pytest.MonkeyPatch, services: Services, *arguments: str) -> Any:
    bind(monkeypatch, services.settings)
    monkeypatch.setenv("SENDER_APNS_PRODUCTION_URL", services.settings.apns_production_url)
    monkeypatch.setenv("SENDER_APNS_SANDBOX_URL", services.settings.apns_sandbox_url)
    monkeypatch.setenv("SENDER_APNS_CA_FILE", str(services.settings.apns_ca_file))
    return CliRunner().invoke(cli, ["push", "--app", APP, *arguments])


def test_an_accepted_push_went_out_exactly_as_it_says(services: Services, simulator: Simulator) -> None:
    target = find_target(services, APP, token=GOOD_TOKEN.upper())
    result = push(services, target, Payload(alert="Hi"), expires_in=0, collapse_id="c")
    assert result.accepted
    assert result.headers["apns-expiration"] == "0"
    assert result.headers["apns-collapse-id"] == "c"
    assert result.headers["authorization"] == "bearer <redacted>"
    assert result.body == b'{"aps":{"alert":"Hi"}}'
    (received,) = simulator.received(GOOD_TOKEN)
    assert received.apns_id.lower() == result.apns_id
    assert GOOD_TOKEN not in repr(result)
    assert GOOD_TOKEN not in result.url


def test_a_users_push_goes_to_the_device_that_was_seen_last(services: Services, database: Database) -> None:
    with database.transaction() as transaction:
        row = transaction.row("SELECT id FROM {s}.apps")
        assert row is not None
        add_device(transaction, row["id"], 1, user="u-1", last_seen_at="2027-01-01T00:00:00Z")
        add_device(transaction, row["id"], 2, user="u-1", last_seen_at="2027-01-02T00:00:00Z", environment="sandbox")
        add_device(transaction, row["id"], 3, user="u-1", last_seen_at="2027-01-03T00:00:00Z", state="invalid")
    target = find_target(services, APP, user="u-1")
    assert target.token == f"{2:064x}"
    assert (target.environment, target.others) == (Environment.SANDBOX, 2)
    assert find_target(services, APP, token=f"{2:064x}").environment is Environment.SANDBOX
    with pytest.raises(NotFoundError):
        find_target(services, APP, user="nobody")
    with pytest.raises(InvalidInputError, match="a token or a user"):
        find_target(services, APP)


def test_a_bad_device_token_may_be_of_the_other_environment(services: Services) -> None:
    target = find_target(services, APP, token=SANDBOX_TOKEN)
    assert target.environment is Environment.PRODUCTION
    result = push(services, target, Payload(alert="Hi"))
    assert isinstance(result.answer, Rejected)
    assert is_wrong_environment(result)
    other = other_environment(services, target)
    assert other is not None
    assert push(services, other, Payload(alert="Hi")).accepted


def test_the_command_explains_and_names_the_other_environment(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(monkeypatch, services, "--token", SANDBOX_TOKEN, "--title", "Hi")
    assert result.exit_code == 1
    assert "400 BadDeviceToken" in result.output
    assert "Builds run from Xcode have sandbox tokens" in result.output
    assert "--environment sandbox" in result.output
    assert SANDBOX_TOKEN not in result.output
    result = run(monkeypatch, services, "--token", SANDBOX_TOKEN, "--title", "Hi", "--environment", "sandbox")
    assert result.exit_code == 0, result.output
    assert "200 accepted" in result.output
    assert "apns-topic: com.example.news" in result.output


def test_a_push_of_a_paused_app_goes_and_says_that_its_campaigns_wait(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Sender(settings=services.settings) as sender:
        sender.apps.pause(APP, "the key was revoked")
    result = run(monkeypatch, services, "--token", GOOD_TOKEN, "--title", "Hi")
    assert result.exit_code == 0, result.output
    assert "200 accepted" in result.output
    assert "its campaigns wait (the key was revoked): sender apps resume com.example.news" in result.output
    answer = json.loads(run(monkeypatch, services, "--token", GOOD_TOKEN, "--title", "Hi", "--json").output)
    assert answer["app_paused"] == "the key was revoked"


def test_the_command_as_json(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, services, "--token", GONE_TOKEN, "--title", "Hi", "--json")
    assert result.exit_code == 1
    answer = json.loads(result.output)
    assert (answer["status"], answer["reason"], answer["accepted"]) == (410, "Unregistered", False)
    assert answer["timestamp"]
    assert answer["payload"] == {"aps": {"alert": {"title": "Hi"}}}


def test_a_push_needs_the_worker_extra_and_says_so(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    target = find_target(services, APP, token=GOOD_TOKEN)
    genuine = builtins.__import__

    def without_worker(name: str, *rest: Any) -> Any:
        if name == "sender.apns.client":
            raise ModuleNotFoundError("No module named 'aioapns'", name="aioapns")
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_worker)
    with pytest.raises(MissingExtraError, match="worker"):
        push(services, target, Payload(alert="Hi"))


def test_an_environment_without_a_credential_is_named(services: Services, database: Database) -> None:
    with database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.credentials WHERE environment = 'sandbox'")
    with pytest.raises(InvalidInputError, match="no credential for sandbox"):
        find_target(services, APP, token=GOOD_TOKEN, environment=Environment.SANDBOX)
    assert other_environment(services, find_target(services, APP, token=GOOD_TOKEN)) is None


def test_a_push_has_its_place_under_the_limits_of_its_app(services: Services, database: Database) -> None:
    with Sender(settings=services.settings) as sender:
        sender.apps.set_rate(APP, 0.02)
    assert push(services, find_target(services, APP, token=GOOD_TOKEN), Payload(alert="Hi")).accepted
    with pytest.raises(RateLimitError, match="leave no room for another 4"):
        push(services, find_target(services, APP, token=GOOD_TOKEN), Payload(alert="Hi"))
    with Sender(settings=services.settings) as sender:
        sender.apps.set_rate(APP, None)
    assert push(services, find_target(services, APP, token=GOOD_TOKEN), Payload(alert="Hi")).accepted
