"""The command lines of workers, beat and Flower: `celery -A tasks …` with the right options, run anywhere."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import SecretStr

from sender.errors import ConfigurationError, MissingExtraError
from sender.policy.pace import SMALL_TIMES
from sender.settings import Settings
from sender.stack.run_celery import root

#: How the URL of a broker begins that our own transport is for.
REDIS = ("redis://", "rediss://")
PROGRAM = "sender.stack.run_celery"
#: What Celery's own command line takes from the environment, before its app's configuration.
CELERYS_OWN = ("BROKER_URL", "RESULT_BACKEND", "LOADER", "CONFIG_MODULE")
CELERYS_PREFIX = "CELERY_"


class Role(StrEnum):
    """What a process is there for; it finds it in SENDER_ROLE."""

    CAMPAIGN = "campaign"  # sends batches of campaigns
    PRIORITY = "priority"  # sends single pushes
    CONTROL = "control"  # tick, fan-out and sweep
    ALL = "all"  # the three of them in one process: for very small installations
    BEAT = "beat"
    FLOWER = "flower"


WORKERS = (Role.CAMPAIGN, Role.PRIORITY, Role.CONTROL)
#: Those that take nothing but sends.
SENDING = (Role.CAMPAIGN, Role.PRIORITY)
LIGHT_THREADS = {Role.PRIORITY: 4, Role.CONTROL: 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A process to start. Passwords travel in its environment, never in its arguments."""

    name: str
    role: Role
    argv: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)


def worker_command(
    settings: Settings, role: Role, *, name: str, concurrency: int | None = None, node: str | None = None
) -> Command:
    """A Celery worker on threads for the queues of a role. `node` is what Flower calls it, unique on its host."""
    check_extras(flower=False)
    roles = WORKERS if role is Role.ALL else (role,)
    threads = concurrency or sum(LIGHT_THREADS.get(each, settings.worker_threads) for each in roles)
    if role in SENDING and is_redis(settings):  # elsewhere nobody counts who may take another one
        threads *= SMALL_TIMES
    arguments = ["worker", "--pool", "threads", "--concurrency", str(threads)]
    arguments += ["--queues", ",".join(settings.queue(each) for each in roles)]
    arguments += ["--without-gossip", "--without-mingle", "--task-events"]
    arguments += ["--hostname", f"{node or name}@%h", "--loglevel", settings.log_level]
    return _command(settings, role, name, arguments)


def is_redis(settings: Settings) -> bool:
    """Whether the broker is one that our own transport is for."""
    return settings.broker_url is not None and settings.broker_url.get_secret_value().startswith(REDIS)


def beat_command(settings: Settings, *, name: str = "beat") -> Command:
    """Celery beat. It writes no file: jobs of every second need not be remembered."""
    check_extras(flower=False)
    arguments = ["beat", "--pidfile=", "--loglevel", settings.log_level]
    return _command(settings, Role.BEAT, name, arguments)


def flower_command(settings: Settings, *, port: int, password: str, name: str = "flower") -> Command:
    """Flower with basic authentication. Raises `ConfigurationError` for a user or password that Flower cannot take."""
    check_extras(flower=True)
    credentials = f"{settings.flower_user}:{password}"
    if "," in credentials or ":" in settings.flower_user:
        raise ConfigurationError(
            "SENDER_FLOWER_USER and SENDER_FLOWER_PASSWORD: Flower takes no comma in them, nor a colon in the user"
        )
    conf = root() / "config" / "flowerconfig.py"
    arguments = ["flower", f"--conf={conf}", f"--address={settings.flower_address}", f"--port={port}"]
    given = settings.model_copy(update={"flower_password": SecretStr(password), "flower_port": port})
    command = _command(given, Role.FLOWER, name, arguments)
    command.environment["FLOWER_BASIC_AUTH"] = credentials
    return command


def check_extras(*, flower: bool) -> None:
    """Raises `MissingExtraError` when the packages of workers, beat or Flower are not installed."""
    for module in ("celery", "aioapns"):
        _need(module, "a worker", "worker")
    if flower:
        _need("flower", "Flower", "flower")


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as SENDER_* variables that give the same settings again, from any working directory."""
    values: dict[str, str] = {}
    for name, each in Settings.model_fields.items():
        match getattr(settings, name):
            case None if each.default is None:
                continue
            case None:
                text = ""  # kept for ever, which is not the default
            case SecretStr() as value:
                text = value.get_secret_value()
            case Path() as value:
                text = str(value.absolute())
            case value:
                text = str(value)
        values[f"SENDER_{name.upper()}"] = text
    return values


def exec_command(command: Command) -> None:
    """Become the process. Does not return."""
    os.chdir("/")  # neutral: a project's own packages are not beside it
    os.execve(command.argv[0], command.argv, command.environment)  # noqa: S606 - that is the point


def _command(settings: Settings, role: Role, name: str, arguments: Sequence[str]) -> Command:
    ours = {f"SENDER_{field.upper()}" for field in Settings.model_fields}
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ours and key not in CELERYS_OWN and not key.startswith(CELERYS_PREFIX)
    }
    environment = inherited | settings_environment(settings)
    environment |= {"SENDER_ROLE": str(role), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
    argv = (sys.executable, "-P", "-m", PROGRAM, *arguments)
    return Command(name=name, role=role, argv=argv, environment=environment)


def _need(module: str, what: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingExtraError(what, extra)
