"""`sender worker`, `sender beat`, `sender flower`: command lines, and our `tasks` whatever else is on the path."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery.beat import Scheduler
from celery.utils.imports import symbol_by_name
from pydantic import SecretStr

from config.celery import make_app
from sender.errors import ConfigurationError, MissingExtraError
from sender.settings import Settings, read_settings
from sender.stack import commands
from sender.stack.commands import Role, beat_command, flower_command, settings_environment, worker_command
from sender.store.database import Database


def _given(**values: object) -> Settings:
    return Settings(database_url="postgresql://u:dbsecret@h/d", broker_url="redis://:brokersecret@h/0", **values)  # type: ignore[arg-type]


def _after(argv: tuple[str, ...], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_a_campaign_worker_runs_on_threads_for_its_own_queue_with_events_and_without_gossip() -> None:
    argv = worker_command(_given(worker_threads=7), Role.CAMPAIGN, name="campaign-1").argv
    assert _after(argv, "--pool") == "threads"
    assert _after(argv, "--concurrency") == "28"  # of which seven may be large
    assert _after(argv, "--queues") == "sender.campaign"
    assert _after(argv, "--hostname") == "campaign-1@%h"
    assert {"--without-gossip", "--without-mingle", "--task-events"} < set(argv)


def test_one_worker_of_all_roles_serves_the_three_queues() -> None:
    argv = worker_command(_given(queue_prefix="mine"), Role.ALL, name="all").argv
    assert _after(argv, "--queues") == "mine.campaign,mine.priority,mine.control"


@pytest.mark.parametrize("command", ["worker", "beat", "flower"])
def test_no_secret_is_among_the_arguments_nor_in_the_repr(command: str) -> None:
    settings = _given(flower_password="flowersecret", apns_proxy_url="http://u:proxysecret@h:1")
    made = {
        "worker": lambda: worker_command(settings, Role.CAMPAIGN, name="w"),
        "beat": lambda: beat_command(settings),
        "flower": lambda: flower_command(settings, port=5555, password="flowersecret"),
    }[command]()
    assert "secret" not in " ".join(made.argv) + repr(made)


def test_the_settings_arrive_in_the_process_as_they_were_whatever_its_working_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = _given(
        rate=12.5, data_dir=Path("here"), apns_ca_file=Path("ca.pem"), log_format="json", flower_password=SecretStr("x")
    )
    monkeypatch.setenv("SENDER_RATE", "1")
    monkeypatch.setenv("SENDER_APNS_PROXY_URL", "http://left-over:1")
    environment = worker_command(settings, Role.CAMPAIGN, name="w").environment
    for name in [name for name in os.environ if name.startswith("SENDER_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        if name.startswith("SENDER_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    there = {"data_dir": tmp_path / "here", "apns_ca_file": tmp_path / "ca.pem"}
    assert read_settings() == settings.model_copy(update=there)
    assert environment["SENDER_ROLE"] == "campaign"
    assert settings_environment(read_settings()) == settings_environment(settings.model_copy(update=there))


def test_beat_goes_on_when_its_hosts_clock_is_set_back(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    steady = [1000.0]
    monkeypatch.setattr("config.schedule.lease_clock", lambda: steady[0])
    app = make_app(settings)
    wall = [datetime(2026, 10, 25, 3, 0, tzinfo=UTC)]
    monkeypatch.setattr(app, "now", lambda: wall[0])
    sent: list[str] = []
    monkeypatch.setattr(Scheduler, "apply_async", lambda self, entry, **_: sent.append(entry.task))
    scheduler = symbol_by_name(app.conf.beat_scheduler)(app, max_interval=1)
    for seconds in (1.5, -3600.0, 1.5):
        wall[0] += timedelta(seconds=seconds)
        steady[0] += 1.5
        for _ in range(4):
            scheduler.tick()
    assert Counter(sent) == {"sender.tick": 3, "sender.sweep": 3}


def test_celery_variables_of_another_project_do_not_reach_our_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://another")
    monkeypatch.setenv("BROKER_URL", "redis://another")
    monkeypatch.setenv("CERTIFICATE_PASSPHRASE", "needed")
    environment = beat_command(_given()).environment
    assert "CELERY_BROKER_URL" not in environment
    assert "BROKER_URL" not in environment
    assert environment["CERTIFICATE_PASSPHRASE"] == "needed"


@pytest.mark.parametrize(("user", "password"), [("a:b", "x"), ("a", "x,y:z")])
def test_flower_is_not_started_with_a_password_that_it_would_read_as_two(user: str, password: str) -> None:
    with pytest.raises(ConfigurationError, match="SENDER_FLOWER_PASSWORD"):
        flower_command(_given(flower_user=user), port=5555, password=password)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "celery"
    monkeypatch.setattr(commands.importlib.util, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(MissingExtraError, match=r"apns-campaign-sender\[worker\]"):
        worker_command(_given(), Role.CAMPAIGN, name="w")
    missing = "flower"
    with pytest.raises(MissingExtraError, match=r"apns-campaign-sender\[flower\]"):
        flower_command(_given(), port=5555, password="x")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Somebody's project with top-level packages of the same names, which must never be imported."""
    for name in ("config", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the {name} package of the project')\n")
    return tmp_path


def test_our_tasks_are_loaded_inside_a_project_with_its_own_tasks_and_config(project: Path, settings: Settings) -> None:
    command = worker_command(settings, Role.CAMPAIGN, name="w")
    done = subprocess.run(
        [*command.argv[: command.argv.index("worker")], "report"],
        cwd=project,
        env={**command.environment, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "sender.send" not in done.stderr
    assert settings.queue("campaign") in done.stdout


def test_a_process_refuses_to_run_with_the_tasks_of_somebody_else(project: Path, settings: Settings) -> None:
    (project / "tasks" / "__init__.py").write_text("")
    (project / "sitecustomize.py").write_text("import tasks\n")
    command = worker_command(settings, Role.CAMPAIGN, name="w")
    done = subprocess.run(
        command.argv, env={**command.environment, "PYTHONPATH": str(project)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "not the one of apns-campaign-sender" in done.stderr


@pytest.mark.parametrize("command", [["worker"], ["beat"], ["flower"]])
def test_without_servers_the_thin_commands_name_both_remedies(command: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("sender"), *command], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "sender up" in done.stderr and "SENDER_" in done.stderr
    assert "Traceback" not in done.stderr


def test_worker_beat_and_flower_run_from_inside_such_a_project(
    project: Path, settings: Settings, database: Database
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    given = settings.model_copy(update={"flower_port": port})
    environment = {**os.environ, **settings_environment(given), "PYTHONPATH": str(project)}
    started = {
        name: subprocess.Popen(
            [Path(sys.executable).with_name("sender"), *arguments],
            cwd=project,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=(project / f"{name}.log").open("w"),
        )
        for name, arguments in {"worker": ["worker", "--role", "all"], "beat": ["beat"], "flower": ["flower"]}.items()
    }
    try:
        while not (_ticked(database) and _worker_pids(database) == [started["worker"].pid] and _healthy(port)):
            assert all(process.poll() is None for process in started.values()), _logs(project)
            time.sleep(0.1)
        for process in started.values():
            process.terminate()
        assert [process.wait() for process in started.values()] == [0, 0, 0], _logs(project)
        assert started["flower"].stdout is not None
        assert started["flower"].stdout.read().startswith(b"user sender  password ")
        assert _worker_pids(database) == []
    finally:
        for process in started.values():
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]


def _ticked(database: Database) -> bool:
    with database.transaction() as transaction:
        return bool(transaction.rows("SELECT 1 FROM {s}.pulses WHERE name = 'tick'"))


def _worker_pids(database: Database) -> list[int]:
    with database.transaction() as transaction:
        return [row["pid"] for row in transaction.rows("SELECT pid FROM {s}.workers")]


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthcheck") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _logs(project: Path) -> str:
    return "\n".join(f"== {log.name}\n{log.read_text()[-2000:]}" for log in project.glob("*.log"))
