"""The message activity log, on a real PostgreSQL."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sender import NotFoundError, Sender
from sender.cli import app as cli
from sender.errors import InvalidInputError
from sender.settings import Settings
from sender.store.database import Database
from tests.integration.campaign_rows import APP, PAYLOAD, add_app, add_delivery, add_device, add_retry, start


@pytest.fixture
def log(database: Database, sender: Sender) -> None:
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        ids = [add_device(transaction, app_id, number << 240, user=f"u-{number}") for number in range(1, 6)]
    for key in ("spring", "summer"):
        sender.campaigns.enqueue(APP, key=key, payload=PAYLOAD)
    spring, summer = start(database, "spring"), start(database, "summer")
    with database.transaction() as transaction:
        add_delivery(transaction, spring, ids[0], "sent", status=200, at="2027-04-01T12:00:00+00:00")
        add_delivery(transaction, spring, ids[1], "rejected", status=410, reason="Unregistered")
        add_delivery(transaction, spring, ids[2], "skipped", reason="OptedOut", attempts=0)
        add_delivery(transaction, summer, ids[1], "rejected", status=400, reason="BadDeviceToken")
        add_delivery(transaction, summer, 999_999, "unknown", reason="NoAnswer")
        add_retry(transaction, summer, ids[3], "ServiceUnavailable")


def outcomes(sender: Sender, **narrowed: object) -> set[tuple[str, str, str | None]]:
    return {(line.campaign, line.outcome, line.reason) for line in sender.activity.read(**narrowed)}  # type: ignore[arg-type]


SPRING = {("spring", "rejected", "Unregistered"), ("spring", "skipped", "OptedOut")}
SUMMER = {
    ("summer", "rejected", "BadDeviceToken"),
    ("summer", "unknown", "NoAnswer"),
    ("summer", "retrying", "ServiceUnavailable"),
}


@pytest.mark.usefixtures("log")
def test_the_log_has_whatever_did_not_succeed_and_all_of_it_when_asked(sender: Sender) -> None:
    assert outcomes(sender) == SPRING | SUMMER
    assert outcomes(sender, everything=True) == SPRING | SUMMER | {("spring", "sent", None)}


@pytest.mark.usefixtures("log")
def test_the_log_narrows_by_campaign_reason_user_and_app(sender: Sender, database: Database) -> None:
    with database.transaction() as transaction:
        add_app(transaction, bundle_id="com.example.other")
    assert outcomes(sender, campaign="spring") == SPRING
    assert outcomes(sender, reason="ServiceUnavailable") == {("summer", "retrying", "ServiceUnavailable")}
    assert outcomes(sender, user="u-2") == {
        ("spring", "rejected", "Unregistered"),
        ("summer", "rejected", "BadDeviceToken"),
    }
    assert outcomes(sender, user="u-1") == set()
    assert outcomes(sender, user="u-1", everything=True) == {("spring", "sent", None)}
    assert outcomes(sender, app="com.example.other") == set()
    assert len(sender.activity.read(limit=2)) == 2
    with pytest.raises(NotFoundError):
        sender.activity.read(campaign="winter")
    with pytest.raises(NotFoundError):
        sender.activity.read(user="nobody")
    with pytest.raises(NotFoundError, match="no user '42'"):
        sender.activity.read(user=42)  # as `register` takes them
    with pytest.raises(NotFoundError, match="sender apps list"):
        sender.activity.read(app="com.example.nobody")
    with pytest.raises(InvalidInputError):
        sender.activity.read(limit=0)


@pytest.mark.usefixtures("log")
def test_a_line_says_what_it_means_and_what_to_do_and_shortens_the_token(sender: Sender) -> None:
    (line,) = sender.activity.read(reason="BadDeviceToken")
    assert (line.status, line.user, line.token, line.environment) == (400, "u-2", "00020000…", "production")
    assert "environment" in line.meaning
    assert line.advice
    assert len(line.apns_id) == 36
    (waiting,) = sender.activity.read(reason="ServiceUnavailable")
    assert waiting.at is None
    assert waiting.due_at is not None
    (gone,) = sender.activity.read(reason="NoAnswer")
    assert (gone.token, gone.user) == (None, None)


@pytest.mark.usefixtures("log")
def test_the_command_prints_lines_and_explains_each_reason_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(monkeypatch, settings)
    result = CliRunner().invoke(cli, ["activity"])
    assert result.exit_code == 0, result.output
    assert result.output.count("BadDeviceToken:") == 1
    assert "00020000…" in result.output
    assert "0" * 20 not in result.output
    assert "no delivery has the reason 'Nope'" in CliRunner().invoke(cli, ["activity", "--reason", "Nope"]).output
    result = CliRunner().invoke(cli, ["activity", "--campaign", "summer", "--json"])
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert {line["outcome"] for line in lines} == {"rejected", "unknown", "retrying"}
    assert all(line["meaning"] and line["advice"] and line["apns_id"] for line in lines)


def bind(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Let commands of this process find the test's servers."""
    assert settings.database_url is not None
    assert settings.broker_url is not None
    monkeypatch.setenv("SENDER_DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("SENDER_DATABASE_SCHEMA", settings.database_schema)
    monkeypatch.setenv("SENDER_BROKER_URL", settings.broker_url.get_secret_value())
    monkeypatch.setenv("SENDER_QUEUE_PREFIX", settings.queue_prefix)
    monkeypatch.setenv("SENDER_DATA_DIR", str(settings.data_dir))
