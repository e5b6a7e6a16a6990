"""`sender doctor` on real servers: a line for each thing that is wrong, what to do, and the exit code."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import redis
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from sender._version import __version__
from sender.cli import app
from sender.doctor import Finding, Status, examine
from sender.doctor.apns import judge_push, made_up_push
from sender.errors import InvalidInputError
from sender.model import ACCEPTED, NotProcessed, Rejected, Unknown
from sender.settings import Settings
from sender.simulator import Scenario, Shares, Simulator, SimulatorConfig, load_provider_key
from sender.simulator.certificates import Certificates
from sender.store import workers
from sender.store.database import Database
from sender.store.migrate import migrate

BUNDLE = "com.example.news"
KEY_ID, TEAM_ID = "KEY1234567", "TEAM123456"
IDENTITY = f"key:{TEAM_ID}/{KEY_ID}:production"


@pytest.fixture(scope="module")
def signing_key() -> bytes:
    return pem(ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory, signing_key: bytes) -> Iterator[Simulator]:
    """An APNs that knows one key and one app, and to whose every device tokens are bad ones."""
    directory = tmp_path_factory.mktemp("apns")
    file = directory / f"AuthKey_{KEY_ID}.p8"
    file.write_bytes(signing_key)
    key = load_provider_key(file, team_id=TEAM_ID, key_id=KEY_ID)
    config = SimulatorConfig(
        directory=directory, keys=(key,), topics=(BUNDLE,), scenario=Scenario(shares=Shares(bad=1.0)), control_port=None
    )
    with Simulator(config) as simulator:
        yield simulator


@pytest.fixture
def http1(simulator: Simulator) -> Iterator[int]:
    """The port of a TLS server with the simulator's certificate that does not speak HTTP/2."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Certificates.within(simulator.ca_file.parent).server_file)
    context.set_alpn_protocols(["http/1.1"])
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=accept, args=(listener, context), daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


def accept(listener: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        try:
            context.wrap_socket(connection, server_side=True).close()
        except OSError:
            connection.close()


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.fixture
def reachable(settings: Settings, simulator: Simulator) -> Settings:
    """Settings whose APNs is the simulator."""
    return settings.model_copy(
        update={
            "apns_production_url": simulator.url,
            "apns_sandbox_url": simulator.sandbox_url,
            "apns_ca_file": simulator.ca_file,
        }
    )


@pytest.fixture
def key_file(tmp_path: Path, signing_key: bytes) -> Path:
    path = tmp_path / f"AuthKey_{KEY_ID}.p8"
    path.write_bytes(signing_key)
    return path


@pytest.fixture
def healthy(database: Database, key_file: Path) -> Database:
    """An installation in which everything works, as far as the database says."""
    add_app(database, key_file)
    for role in ("campaign", "priority", "control"):
        add_worker(database, role, credentials={IDENTITY: None})
    with database.transaction() as transaction:
        workers.pulse(transaction, "tick")
        workers.pulse(transaction, "sweep")
    return database


def add_app(database: Database, key_file: Path, *, state: str = "active", reason: str | None = None) -> None:
    with database.transaction() as transaction:
        [app_id] = transaction.execute(
            "INSERT INTO {s}.apps (bundle_id, state, state_reason) VALUES (%s, %s, %s) RETURNING id",
            (BUNDLE, state, reason),
        ).fetchone() or (0,)
        transaction.execute(
            "INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id)"
            " VALUES (%s, 'production', 'key', %s, %s, %s)",
            (app_id, str(key_file), TEAM_ID, KEY_ID),
        )


def add_worker(
    database: Database,
    role: str,
    *,
    host: str = "worker-1",
    version: str = __version__,
    ahead: float = 0,
    silent: float = 0,
    credentials: dict[str, str | None] | None = None,
) -> None:
    identity = uuid4()
    with database.transaction() as transaction:
        workers.beat(
            transaction,
            id=identity,
            role=role,
            host=host,
            pid=4711,
            version=version,
            clock=datetime.now(UTC) + timedelta(seconds=ahead),
            credentials=credentials or {},
        )
        transaction.execute(
            "UPDATE {s}.workers SET seen_at = seen_at - make_interval(secs => %s),"
            " clock = clock - make_interval(secs => %s) WHERE id = %s",
            (silent, silent, identity),
        )


def faults(settings: Settings) -> dict[str, Finding]:
    """What is not ok, by check."""
    return {finding.check: finding for finding in examine(settings) if finding.status is not Status.OK}


def test_a_healthy_installation_has_nothing_to_report(healthy: Database, reachable: Settings) -> None:
    findings = list(examine(reachable))
    assert [finding for finding in findings if finding.status is not Status.OK] == []
    assert {finding.check for finding in findings} >= {
        "settings",
        "database",
        "migrations",
        "broker",
        "eviction",
        "workers",
        "beat",
        "clock",
        "credentials",
        "apns",
    }


def test_missing_servers_are_named_with_both_remedies_and_the_rest_is_skipped(tmp_path: Path) -> None:
    findings = list(examine(Settings(data_dir=tmp_path)))
    assert [finding.status for finding in findings[:2]] == [Status.FAILED, Status.FAILED]
    assert {finding.status for finding in findings[2:]} == {Status.SKIPPED}
    assert "SENDER_DATABASE_URL" in findings[0].advice and "sender up" in findings[0].advice


def test_a_database_that_is_away_fails_and_the_broker_is_still_looked_at(settings: Settings) -> None:
    away = Settings(**{**settings.model_dump(), "database_url": "postgresql://sender:hunter2@127.0.0.1:1/sender"})
    findings = {finding.check: finding for finding in examine(away)}
    assert findings["database"].status is Status.FAILED
    assert findings["broker"].status is Status.OK
    assert "hunter2" not in str(findings)


def test_a_schema_that_is_not_migrated_says_what_to_run(settings: Settings) -> None:
    empty = settings.model_copy(update={"database_schema": "not_migrated_yet"})
    finding = faults(empty)["migrations"]
    assert (finding.status, finding.advice) == (Status.FAILED, "run `sender migrate`")


def test_a_broker_that_is_away_fails_without_its_password(healthy: Database, reachable: Settings) -> None:
    away = Settings(**{**reachable.model_dump(), "broker_url": "redis://:hunter2@127.0.0.1:1/0"})
    finding = faults(away)["broker"]
    assert finding.status is Status.FAILED
    assert "hunter2" not in str(finding)


@pytest.mark.parametrize(("limit", "status"), [("100mb", Status.FAILED), ("0", Status.WARNING)])
def test_a_broker_that_evicts_is_noticed(
    healthy: Database, reachable: Settings, valkey_url: str, limit: str, status: Status
) -> None:
    client = redis.Redis.from_url(valkey_url)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", limit)
    try:
        finding = faults(reachable)["eviction"]
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "0")
    assert finding.status is status
    assert "allkeys-lru" in finding.message and "noeviction" in finding.advice


def test_a_role_without_a_living_worker_fails(database: Database, reachable: Settings) -> None:
    add_worker(database, "campaign")
    add_worker(database, "priority", silent=600)
    failed = [
        finding for finding in examine(reachable) if finding.check == "workers" and finding.status is Status.FAILED
    ]
    assert [finding.advice for finding in failed] == [
        "start one: `sender worker --role priority`",
        "start one: `sender worker --role control`",
    ]


def test_one_worker_of_all_roles_is_enough(database: Database, reachable: Settings) -> None:
    add_worker(database, "all")
    assert "workers" not in faults(reachable)


def test_a_worker_of_another_version_is_noticed(healthy: Database, reachable: Settings) -> None:
    add_worker(healthy, "campaign", version="0.0.1")
    assert "0.0.1" in faults(reachable)["workers"].message


def test_a_worker_that_cannot_read_a_credential_fails_by_name(healthy: Database, reachable: Settings) -> None:
    add_worker(healthy, "campaign", host="worker-2", credentials={IDENTITY: "there is no such file"})
    finding = faults(reachable)["workers"]
    assert finding.status is Status.FAILED
    assert "worker-2" in finding.message and "there is no such file" in finding.message


def test_a_beat_that_stopped_fails(healthy: Database, reachable: Settings) -> None:
    with healthy.transaction() as transaction:
        transaction.execute("UPDATE {s}.pulses SET at = at - interval '3 minutes' WHERE name = 'tick'")
    finding = faults(reachable)["beat"]
    assert (finding.status, "sender beat" in finding.advice) == (Status.FAILED, True)


@pytest.mark.parametrize(("ahead", "status"), [(20, Status.WARNING), (-3600, Status.FAILED)])
def test_a_worker_whose_clock_is_wrong_is_noticed(
    healthy: Database, reachable: Settings, ahead: float, status: Status
) -> None:
    add_worker(healthy, "campaign", host="worker-2", ahead=ahead)
    finding = faults(reachable)["clock"]
    assert finding.status is status
    assert "worker-2" in finding.message and "NTP" in finding.advice


def test_an_app_that_apns_made_us_pause_fails_with_the_advice(
    database: Database, reachable: Settings, key_file: Path
) -> None:
    add_app(database, key_file, state="paused", reason="InvalidProviderToken: wrong key id. Check it.")
    finding = faults(reachable)["apps"]
    assert (finding.status, finding.advice) == (Status.FAILED, "InvalidProviderToken: wrong key id. Check it.")


def test_an_app_that_a_person_paused_is_a_warning(database: Database, reachable: Settings, key_file: Path) -> None:
    add_app(database, key_file, state="paused")
    assert faults(reachable)["apps"].status is Status.WARNING


def test_a_credential_that_rests_is_shown(healthy: Database, reachable: Settings) -> None:
    with healthy.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.breakers (credential, state, until, cause) "
            "VALUES (%s, 'open', now() + interval '1 hour', 'too many')",
            (IDENTITY,),
        )
    assert IDENTITY in faults(reachable)["apps"].message


def test_a_key_file_that_is_gone_everywhere_fails(database: Database, reachable: Settings, key_file: Path) -> None:
    add_app(database, key_file)
    key_file.unlink()
    finding = faults(reachable)["credentials"]
    assert finding.status is Status.FAILED
    assert "no such file" in finding.message


def test_a_key_file_that_only_the_workers_have_is_a_warning(
    healthy: Database, reachable: Settings, key_file: Path
) -> None:
    key_file.unlink()
    assert faults(reachable)["credentials"].status is Status.WARNING


def test_an_unreachable_apns_fails_with_the_host_and_a_remedy(healthy: Database, reachable: Settings) -> None:
    finding = faults(reachable.model_copy(update={"apns_production_url": "https://127.0.0.1:1"}))["apns"]
    assert finding.status is Status.FAILED
    assert "127.0.0.1:1" in finding.message and "SENDER_APNS_PROXY_URL" in finding.advice


def test_an_apns_whose_certificate_is_not_trusted_names_the_setting(healthy: Database, reachable: Settings) -> None:
    finding = faults(reachable.model_copy(update={"apns_ca_file": None}))["apns"]
    assert "SENDER_APNS_CA_FILE" in finding.advice


def test_an_apns_that_does_not_speak_http2_fails(healthy: Database, reachable: Settings, http1: int) -> None:
    changed = {"apns_production_url": f"https://localhost:{http1}"}
    assert "HTTP/2" in faults(reachable.model_copy(update=changed))["apns"].message


def test_a_proxy_is_asked_with_its_password_and_its_refusal_is_told(healthy: Database, reachable: Settings) -> None:
    heard: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def refuse() -> None:
        connection, _ = listener.accept()
        heard.append(connection.recv(4096))
        connection.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        connection.close()

    threading.Thread(target=refuse, daemon=True).start()
    url = f"http://user:p%40ss@127.0.0.1:{listener.getsockname()[1]}"
    finding = faults(Settings(**{**reachable.model_dump(), "apns_proxy_url": url}))["apns"]
    listener.close()
    assert finding.status is Status.FAILED
    assert "refused the user and password" in finding.message
    assert b"Basic dXNlcjpwQHNz" in heard[0]


def test_a_misspelt_variable_is_noticed(
    healthy: Database, reachable: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENDER_DATABSE_URL", "postgresql://")
    assert "SENDER_DATABSE_URL" in faults(reachable)["settings"].message


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (ACCEPTED, Status.OK),
        (Rejected(status=400, reason="BadDeviceToken"), Status.OK),
        (Rejected(status=400, reason="DeviceTokenNotForTopic"), Status.OK),
        (Rejected(status=410, reason="Unregistered"), Status.OK),
        (Rejected(status=403, reason="InvalidProviderToken"), Status.FAILED),
        (Rejected(status=403, reason="SomethingNew"), Status.FAILED),
        (Rejected(status=400, reason="TopicDisallowed"), Status.FAILED),
        (Rejected(status=503, reason="ServiceUnavailable"), Status.WARNING),
        (Unknown(cause="timeout"), Status.FAILED),
        (NotProcessed(cause="connect"), Status.FAILED),
    ],
    ids=str,
)
def test_the_answer_to_a_made_up_token_says_whether_the_credential_is_good(answer: Any, status: Status) -> None:
    assert judge_push("app", answer).status is status


def test_a_push_to_a_made_up_token_proves_a_good_credential(healthy: Database, reachable: Settings) -> None:
    [finding] = examine(reachable, only=["push"])
    assert finding.status is Status.OK
    assert "BadDeviceToken" in finding.message


def test_a_push_with_a_key_that_apns_does_not_know_names_the_fault(
    healthy: Database, reachable: Settings, key_file: Path
) -> None:
    key_file.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    [finding] = examine(reachable, only=["push"])
    assert finding.status is Status.FAILED
    assert "403 InvalidProviderToken" in finding.message and "key id" in finding.advice


def test_made_up_tokens_are_random_and_not_stored() -> None:
    one, other = made_up_push(BUNDLE), made_up_push(BUNDLE)
    assert one.token != other.token
    assert (one.headers.topic, one.headers.expiration) == (BUNDLE, 0)


def test_here_asks_for_this_host_only(database: Database, settings: Settings) -> None:
    add_worker(database, "campaign", host="elsewhere")
    assert [finding.status for finding in examine(settings, only=["here"])] == [Status.FAILED]
    add_worker(database, "campaign", host=socket.gethostname())
    assert [finding.status for finding in examine(settings, only=["here"])] == [Status.OK]


def test_only_the_checks_that_were_asked_for_run(healthy: Database, settings: Settings) -> None:
    assert {finding.check for finding in examine(settings, only=["beat", "workers"])} == {"beat", "workers"}


def test_what_fails_before_the_checks_that_were_asked_for_is_told(tmp_path: Path) -> None:
    findings = list(examine(Settings(data_dir=tmp_path), only=["beat"]))
    assert Status.FAILED in {finding.status for finding in findings}


# --- the command ----------------------------------------------------------------------------------------------------


def environment(settings: Settings) -> dict[str, str]:
    values = {name: getattr(settings, name) for name in Settings.model_fields}
    return {
        f"SENDER_{name.upper()}": str(getattr(value, "get_secret_value", lambda value=value: value)())
        for name, value in values.items()
        if value is not None
    }


def test_the_command_exits_0_and_prints_a_line_a_check(healthy: Database, reachable: Settings) -> None:
    result = CliRunner().invoke(app, ["doctor"], env=environment(reachable))
    assert result.exit_code == 0, result.output
    assert "ok      migrations" in result.output


def test_the_command_exits_1_and_says_what_to_do(database: Database, settings: Settings) -> None:
    result = CliRunner().invoke(app, ["doctor"], env=environment(settings))
    assert result.exit_code == 1
    assert "→ start one: `sender worker --role campaign`" in result.output


def test_the_json_has_every_finding(healthy: Database, reachable: Settings) -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"], env=environment(reachable))
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert {"check": "migrations", "status": "ok", "advice": ""}.items() <= report["findings"][2].items()


def test_a_setting_that_is_wrong_is_a_finding_and_not_a_traceback() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"], env={"SENDER_BATCH_SIZE": "many"})
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"]) == (1, False)
    assert "SENDER_BATCH_SIZE" in report["findings"][0]["message"]


def test_the_command_changes_nothing(postgres_url: str, settings: Settings) -> None:
    schema = f"test_{uuid4().hex[:12]}"
    CliRunner().invoke(app, ["doctor"], env=environment(settings) | {"SENDER_DATABASE_SCHEMA": schema})
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT to_regnamespace(%s)", (schema,)).fetchone() == (None,)
    migrate(postgres_url, schema)  # the name was free
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE")


def test_an_unknown_check_is_refused_with_the_names_that_there_are(settings: Settings) -> None:
    result = CliRunner().invoke(app, ["doctor", "--only", "weather"], env=environment(settings))
    assert isinstance(result.exception, InvalidInputError)
    assert "beat" in str(result.exception)
