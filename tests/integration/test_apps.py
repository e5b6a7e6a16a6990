"""Apps and their credentials, with real key files and a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from sender import Sender
from sender.cli import app as command
from sender.errors import ConflictError, CredentialError, InvalidInputError, NotFoundError
from sender.model import Environment
from sender.policy.states import AppState
from sender.store import apps as store
from sender.store import breakers
from sender.store.breakers import Opening
from sender.store.database import Database

APP = "com.example.news"
TEAM = "TEAM123456"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    file = tmp_path / "AuthKey_KEY1234567.p8"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


@pytest.fixture
def run(database: Database) -> Callable[..., Result]:
    """Runs the command line on the test's own schema."""
    environment = {"SENDER_DATABASE_URL": database.url, "SENDER_DATABASE_SCHEMA": database.schema}
    return lambda *arguments: CliRunner().invoke(command, [str(each) for each in arguments], env=environment)


def campaign(database: Database, state: str, finished: bool) -> None:
    with database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.campaigns (app_id, key, content, payload, push_type, priority, segment, batch_size, "
            "expires_in, grace, state, started_at, finished_at) SELECT id, 'spring', '{}', '', 'alert', 10, '{}', 500, "
            "0, 0, %s, now(), CASE WHEN %s THEN now() END FROM {s}.apps",
            [state, finished],
        )
        transaction.execute(
            "INSERT INTO {s}.batches (campaign_id, device_ids, size) SELECT id, '{1}', 1 FROM {s}.campaigns"
        )


def test_an_app_refers_to_its_key_by_path_for_both_environments(
    sender: Sender, key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(key_file.parent)
    added = sender.apps.add(APP, team_id=TEAM, key_file=key_file.name)
    assert set(added.environments) == set(Environment)
    for ref in added.credentials:
        assert (ref.file, ref.key_id, ref.team_id) == (str(key_file), "KEY1234567", TEAM)


def test_the_same_again_changes_nothing_and_another_credential_is_refused(sender: Sender, key_file: Path) -> None:
    first = sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    assert sender.apps.add(APP, team_id=TEAM, key_file=key_file) == first
    with pytest.raises(ConflictError, match="set-credential"):
        sender.apps.add(APP, team_id="OTHER12345", key_file=key_file)


def test_one_environments_credential_is_replaced_and_the_other_stays(sender: Sender, key_file: Path) -> None:
    sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    changed = sender.apps.set_credential(APP, team_id="OTHER12345", key_file=key_file, environment="sandbox")
    assert {ref.environment: ref.team_id for ref in changed.credentials} == {
        Environment.PRODUCTION: TEAM,
        Environment.SANDBOX: "OTHER12345",
    }


def test_a_credential_that_cannot_be_used_is_not_kept(sender: Sender, key_file: Path) -> None:
    key_file.write_text("-----BEGIN PRIVATE KEY-----\nnonsense\n-----END PRIVATE KEY-----\n")
    with pytest.raises(CredentialError, match="not a private key"):
        sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    assert sender.apps.list() == []


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"key_file": "a.p8", "certificate_file": "b.p12"},
        {"certificate_file": "b.p12", "team_id": TEAM},
        {"key_file": "a.p8", "passphrase_env": "X"},
        {"certificate_file": "b.p12", "passphrase_env": "my secret!"},
        {"key_file": "a.p8", "environment": "staging"},
    ],
)
def test_arguments_that_cannot_be_meant_are_refused(sender: Sender, given: dict[str, str]) -> None:
    with pytest.raises(CredentialError) as caught:
        sender.apps.add(APP, **given)  # type: ignore[arg-type]
    assert "my secret" not in str(caught.value)


@pytest.mark.parametrize("bundle_id", ["", "com..x", "com.example.ünï", "com example", "x" * 156, "com/x"])
def test_what_is_no_bundle_id_is_refused(sender: Sender, key_file: Path, bundle_id: str) -> None:
    with pytest.raises(InvalidInputError, match="bundle id"):
        sender.apps.add(bundle_id, team_id=TEAM, key_file=key_file)


@pytest.mark.parametrize(("state", "finished"), [("scheduled", False), ("running", False), ("cancelled", False)])
def test_an_app_with_open_campaigns_is_not_removed(
    sender: Sender, database: Database, key_file: Path, state: str, finished: bool
) -> None:
    sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    campaign(database, state, finished)
    with pytest.raises(ConflictError, match="spring"):
        sender.apps.remove(APP)
    assert sender.apps.show(APP).credentials


def test_an_app_is_removed_with_all_that_is_its_own(sender: Sender, database: Database, key_file: Path) -> None:
    sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    sender.devices.register(APP, "abcd", user="u")
    campaign(database, "completed", finished=True)
    sender.apps.remove(APP)
    with pytest.raises(NotFoundError):
        sender.apps.show(APP)
    assert sender.devices.find("abcd") == []
    assert [change.kind for change in sender.changelog.read(user="u")] == ["registered"]


def test_a_paused_app_keeps_the_first_reason_until_a_person_resumes_it(
    sender: Sender, database: Database, key_file: Path
) -> None:
    added = sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    with database.transaction() as transaction:
        assert store.pause_app(transaction, added.id, "InvalidProviderToken")
        assert not store.pause_app(transaction, added.id, "BadTopic")
    paused = sender.apps.show(APP)
    assert (paused.state, paused.state_reason) == (AppState.PAUSED, "InvalidProviderToken")
    assert sender.apps.resume(APP)
    assert not sender.apps.resume(APP)
    assert sender.apps.show(APP).state_reason is None


def test_workers_notice_every_change_by_the_epoch(sender: Sender, database: Database, key_file: Path) -> None:
    sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    epochs = []
    for change in (
        lambda: sender.apps.set_rate(APP, 0.2),
        lambda: sender.apps.pause(APP),
        lambda: sender.apps.resume(APP),
        lambda: sender.apps.set_credential(APP, team_id=TEAM, key_file=key_file),
        lambda: sender.apps.set_rate(APP, None),
    ):
        change()
        with database.transaction() as transaction:
            row = transaction.execute("SELECT epoch FROM {s}.apps").fetchone()
            assert row is not None
            epochs.append(row[0])
    assert epochs == sorted(set(epochs))


@pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e-300])
def test_a_rate_is_a_number_above_zero(sender: Sender, key_file: Path, rate: float) -> None:
    sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    with pytest.raises(InvalidInputError, match="rate"):
        sender.apps.set_rate(APP, rate)


def test_the_commands_add_show_and_remove_an_app(run: Callable[..., Result], key_file: Path) -> None:
    assert run("apps", "add", APP, "--team-id", TEAM, "--key-file", key_file).exit_code == 0
    shown = json.loads(run("apps", "show", APP, "--json").stdout)
    assert [each["serves"] for each in shown["credentials"]] == [["production", "sandbox"]] * 2
    assert "KEY1234567" in run("apps", "show", APP).stdout
    assert run("apps", "rate", APP, "500").exit_code == 0
    assert "500/s" in run("apps", "list").stdout
    assert run("apps", "pause", APP, "--reason", "lunch").exit_code == 0
    assert json.loads(run("apps", "list", "--json").stdout)[0]["state_reason"] == "lunch"
    assert run("apps", "resume", APP).exit_code == 0
    assert run("apps", "remove", APP).exit_code == 0
    assert json.loads(run("apps", "list", "--json").stdout) == []


def test_a_credential_that_went_away_is_a_fault_that_is_shown(run: Callable[..., Result], key_file: Path) -> None:
    run("apps", "add", APP, "--team-id", TEAM, "--key-file", key_file)
    key_file.unlink()
    shown = json.loads(run("apps", "show", APP, "--json").stdout)
    assert shown["credentials"][0]["faults"] == ["there is no such file"]


def test_a_breaker_is_shown_with_its_cause_and_closed_by_hand(
    run: Callable[..., Result], database: Database, key_file: Path
) -> None:
    run("apps", "add", APP, "--team-id", TEAM, "--key-file", key_file)
    assert "no credential" in run("apps", "close-breaker", APP).stdout
    with database.transaction() as transaction:
        why = Opening(cause="cannot connect: no route to host", chance=1.0, at_least=600)
        breakers.trip(transaction, f"key:{TEAM}/KEY1234567:sandbox", why)
    production, sandbox = json.loads(run("apps", "show", APP, "--json").stdout)["credentials"]
    assert (production["sending"], production["breaker"]["state"]) == ("sends", "closed")
    assert sandbox["breaker"]["state"] == "open"
    assert sandbox["breaker"]["cause"] == "cannot connect: no route to host"
    assert sandbox["breaker"]["since"] < sandbox["breaker"]["until"]
    shown = " ".join(run("apps", "show", APP).stdout.split())
    assert "rests since" in shown
    assert "no route to host" in shown
    closed = " ".join(run("apps", "close-breaker", APP, "--environment", "sandbox").stdout.split())
    assert "sends again" in closed
    assert "APNs may block a sender" in closed
    assert "is slowed down to 10 pushes/s" in " ".join(run("apps", "show", APP).stdout.split())
    assert isinstance(run("apps", "close-breaker", "com.example.nobody").exception, NotFoundError)


def test_an_app_with_devices_is_not_removed_without_being_asked(
    run: Callable[..., Result], sender: Sender, key_file: Path
) -> None:
    run("apps", "add", APP, "--team-id", TEAM, "--key-file", key_file)
    sender.devices.register(APP, "abcd")
    refused = run("apps", "remove", APP)
    assert isinstance(refused.exception, InvalidInputError)
    assert run("apps", "remove", APP, "--yes").exit_code == 0


def test_a_secret_never_reaches_the_database(sender: Sender, database: Database, key_file: Path) -> None:
    sender.apps.add(APP, team_id=TEAM, key_file=key_file)
    secret = key_file.read_text().splitlines()[1]
    with database.transaction() as transaction:
        kept = str(transaction.rows("SELECT to_jsonb(c) AS row FROM {s}.credentials c"))
    assert secret not in kept
    assert "PRIVATE" not in kept
