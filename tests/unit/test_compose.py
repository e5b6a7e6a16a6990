"""docker-compose.yml, the Dockerfile and the entrypoint, as far as they can be judged without a Docker engine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sender.cli import app
from sender.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
LASTING = {name: service for name, service in SERVICES.items() if name not in {"migrate", "cli"}}
EXAMPLE = dict(
    line.split("=", 1)
    for line in (ROOT / "deploy" / "env.example").read_text().splitlines()
    if line and not line.startswith("#")
)
sys.path.insert(0, str(ROOT / "deploy"))
import entrypoint  # noqa: E402


def command_of(service: dict[str, Any]) -> str:
    return service["command"][0]


def test_there_is_a_service_for_each_part() -> None:
    assert set(SERVICES) == {
        "postgres",
        "redis",
        "migrate",
        "worker",
        "worker-priority",
        "worker-control",
        "beat",
        "flower",
        "cli",
    }


@pytest.mark.parametrize("name", [name for name in OURS if "command" in OURS[name]])
def test_every_command_of_ours_exists(name: str) -> None:
    assert command_of(OURS[name]) in typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", LASTING)
def test_everything_that_lasts_restarts_has_a_health_check_and_limits(name: str) -> None:
    service = LASTING[name]
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"]
    assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}


@pytest.mark.parametrize("name", OURS)
def test_our_processes_have_no_rights_that_they_do_not_need(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]


@pytest.mark.parametrize("name", [name for name in OURS if name != "migrate"])
def test_our_processes_wait_for_the_migrations_and_need_no_redis_of_composes_own(name: str) -> None:
    needs = OURS[name]["depends_on"]
    assert needs["migrate"]["condition"] == "service_completed_successfully"
    assert needs["redis"]["required"] is False


def test_with_urls_of_ones_own_neither_postgres_nor_redis_is_started() -> None:
    assert (SERVICES["postgres"]["profiles"], SERVICES["redis"]["profiles"]) == (["postgres"], ["redis"])
    assert SERVICES["migrate"]["depends_on"]["postgres"]["required"] is False
    assert EXAMPLE["COMPOSE_PROFILES"] == "postgres,redis"


def test_redis_never_evicts_and_has_a_password() -> None:
    script = SERVICES["redis"]["command"][2]
    assert "maxmemory-policy noeviction" in script and "requirepass" in script


@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_the_servers_have_few_rights_and_no_way_out(name: str) -> None:
    service = SERVICES[name]
    assert service["networks"] == ["inner"] and COMPOSE["networks"]["inner"]["internal"] is True
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert "ports" not in service


def test_postgres_asks_everybody_for_a_password_and_logs_no_values() -> None:
    service = SERVICES["postgres"]
    assert service["environment"]["POSTGRES_INITDB_ARGS"] == "--auth=scram-sha-256"
    assert {"log_error_verbosity=terse", "log_min_error_statement=panic"} <= set(service["command"])


def test_only_what_sends_and_the_command_line_see_the_keys() -> None:
    assert {name for name, service in SERVICES.items() if "secrets/apns" in str(service.get("volumes"))} == {
        "worker",
        "worker-priority",
        "worker-control",
        "cli",
    }
    for service in SERVICES.values():
        assert all(each.endswith(":ro") for each in service.get("volumes", []) if each.startswith("./"))


def test_flower_does_not_know_the_databases_password_nor_the_migrations_the_brokers() -> None:
    assert "database_password" not in SERVICES["flower"]["secrets"]
    assert SERVICES["migrate"]["secrets"] == ["database_password"]


@pytest.mark.parametrize("name", [name for name in SERVICES if "build" not in SERVICES[name]])
def test_images_of_others_are_pinned_to_a_version(name: str) -> None:
    assert re.fullmatch(r"[a-z]+:\d+(\.\d+)?-bookworm", SERVICES[name]["image"])


def test_flower_has_a_password_and_listens_on_this_host_only() -> None:
    flower = SERVICES["flower"]
    assert flower["environment"]["SENDER_FLOWER_PASSWORD_FILE"] == "/run/secrets/flower_password"
    assert flower["ports"] == ["${SENDER_FLOWER_LISTEN:-127.0.0.1:5555}:5555"]


def test_no_password_stands_in_the_file_or_in_an_environment() -> None:
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value == "" or str(value).startswith("/run/secrets/")
    for secret in COMPOSE["secrets"].values():
        assert secret["file"].startswith("./secrets/")


@pytest.mark.parametrize("name", OURS)
def test_every_secret_that_a_service_reads_is_mounted_in_it(name: str) -> None:
    files = [value for key, value in OURS[name]["environment"].items() if key.endswith("_PASSWORD_FILE") and value]
    assert {value.removeprefix("/run/secrets/") for value in files} == set(OURS[name]["secrets"])


@pytest.mark.parametrize("name", OURS)
def test_every_setting_in_the_file_exists_and_its_default_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in [key for key in os.environ if key.startswith("SENDER_")]:
        monkeypatch.delenv(key)
    given = OURS[name]["environment"].items()
    environment = {key: interpolate(str(value)) for key, value in given if value is not None}
    plain = {key: value for key, value in environment.items() if not key.endswith("_PASSWORD_FILE")}
    named = {key.removeprefix("SENDER_").lower() for key, _ in given if not key.endswith("_PASSWORD_FILE")}
    assert named <= set(Settings.model_fields)
    for key, value in plain.items():
        monkeypatch.setenv(key, value)
    assert load_settings().queue("campaign") == "sender.campaign"


@pytest.mark.parametrize("name", OURS)
def test_every_setting_in_dot_env_reaches_the_processes(name: str) -> None:
    """Or else what somebody sets to keep deliveries for longer would do nothing."""
    fixed = {"data_dir", "stop_timeout", "log_format", "flower_address", "flower_port"}  # by the image and this file
    flowers = {"flower_user", "flower_password"}
    handed_on = {key.removeprefix("SENDER_").lower() for key in OURS[name]["environment"]}
    assert set(Settings.model_fields) - handed_on == fixed | flowers - ({"flower_user"} if name == "flower" else set())


def test_a_stopping_worker_is_given_more_time_than_it_takes() -> None:
    seconds = float(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Settings.model_fields["stop_timeout"].default


def interpolate(text: str) -> str:
    """What Compose makes of ${NAME:-default} and ${NAME:?word} with the example's .env."""
    return re.sub(r"\$\{(\w+)(?::[-?]([^}]*))?\}", lambda match: EXAMPLE.get(match[1], match[2] or ""), text)


# --- the image --------------------------------------------------------------------------------------------------------


def test_the_image_runs_as_an_ordinary_user_on_glibc_without_embedded_servers() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.count("FROM python:3.12-slim") == 2
    assert re.search(r"^USER 10001:10001$", text, flags=re.MULTILINE)
    assert "'.[worker,flower]'" in text and "embedded]" not in text and "[all]" not in text


def test_everything_that_the_image_copies_is_let_through() -> None:
    text = (ROOT / "Dockerfile").read_text()
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?:--chmod=\S+ )?(?!--from)(.+) \S+$", text, flags=re.MULTILINE)
    for source in " ".join(copied).split():
        assert source in let
        assert (ROOT / source).exists()


# --- secrets as files -------------------------------------------------------------------------------------------------


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(entrypoint, "SECRETS", f"{tmp_path}/")
    return tmp_path


def test_a_secret_file_becomes_the_setting(secrets: Path) -> None:
    (secrets / "flower").write_text("hunter2\n")
    assert entrypoint.resolve({"SENDER_FLOWER_PASSWORD_FILE": f"{secrets}/flower", "HOME": "/"}) == {
        "SENDER_FLOWER_PASSWORD": "hunter2",
        "HOME": "/",
    }


def test_a_database_password_lands_in_the_url_with_every_character_of_it(secrets: Path) -> None:
    (secrets / "database").write_text("p@ss/w%rd:é\n")
    resolved = entrypoint.resolve(
        {
            "SENDER_DATABASE_URL": "postgresql://sender@postgres:5432/sender?sslmode=require",
            "SENDER_DATABASE_PASSWORD_FILE": f"{secrets}/database",
        }
    )
    assert resolved == {
        "SENDER_DATABASE_URL": "postgresql://sender:p%40ss%2Fw%25rd%3A%C3%A9@postgres:5432/sender?sslmode=require"
    }


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://redis:6379/0", "redis://:secret@redis:6379/0"),
        ("rediss://app@cache.example:6380/2", "rediss://app:secret@cache.example:6380/2"),
        ("redis://:own@redis:6379/0", "redis://:own@redis:6379/0"),
        ("redis://[::1]:6379/0", "redis://:secret@[::1]:6379/0"),
    ],
)
def test_a_broker_password_lands_in_a_url_that_has_none(secrets: Path, url: str, expected: str) -> None:
    (secrets / "broker").write_text("secret")
    given = {"SENDER_BROKER_URL": url, "SENDER_BROKER_PASSWORD_FILE": f"{secrets}/broker"}
    assert entrypoint.resolve(given) == {"SENDER_BROKER_URL": expected}


def test_an_empty_secret_leaves_the_url_alone(secrets: Path) -> None:
    (secrets / "broker").write_text("\n")
    given = {"SENDER_BROKER_URL": "redis://r/0", "SENDER_BROKER_PASSWORD_FILE": f"{secrets}/broker"}
    assert entrypoint.resolve(given) == {"SENDER_BROKER_URL": "redis://r/0"}


def test_settings_whose_values_are_files_stay_as_they_are(secrets: Path) -> None:
    given = {"SENDER_APNS_CA_FILE": f"{secrets}/ca.pem", "SSL_CERT_FILE": "/etc/ssl/cert.pem"}
    assert entrypoint.resolve(given) == given


def test_the_entrypoint_becomes_its_command_and_names_a_secret_that_is_missing(tmp_path: Path) -> None:
    script = ROOT / "deploy" / "entrypoint.py"
    done = subprocess.run([sys.executable, script, "echo", "hello"], capture_output=True, text=True, check=False)
    assert done.stdout == "hello\n"
    missing = subprocess.run(
        [sys.executable, script, "echo", "hello"],
        env={**os.environ, "X_FILE": "/run/secrets/none"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 1
    assert "/run/secrets/none" in missing.stderr and "Traceback" not in missing.stderr


def test_make_secrets_makes_every_file_that_compose_mounts_and_keeps_those_that_are_there(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    script = tmp_path / "deploy" / "make-secrets"
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "database_password").write_text("mine")
    for _ in range(2):
        subprocess.run([script], check=True, capture_output=True)
    for secret in COMPOSE["secrets"].values():
        assert (tmp_path / secret["file"]).stat().st_size
    assert (tmp_path / "secrets" / "database_password").read_text() == "mine"
    assert len((tmp_path / "secrets" / "broker_password").read_text()) == 48
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".env").read_text() == (ROOT / "deploy" / "env.example").read_text()
