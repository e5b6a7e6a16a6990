"""A stack that is listened to: logs of all processes, Celery's events, every command that reaches the broker, what
stays in it, and the command lines of the processes."""

from __future__ import annotations

import base64
import binascii
import json
import re
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import redis
from kombu import Connection

from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, Rehearsal
from sender.settings import Settings, load_settings, running_servers
from sender.simulator import Scenario, Shares
from sender.stack.children import PROCESSES_FILE

FLOWER_PASSWORD = "flower-" + "pass-word-" + "81f2"
#: Every kind of answer, so that every kind of line is written.
SCENARIO = Scenario(
    seed=11,
    shares=Shares(
        unregistered=0.05,
        stale_unregistered=0.05,
        other_environment=0.02,
        wrong_topic=0.02,
        throttled=0.03,
        errors=0.05,
    ),
)
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{16,}={0,2}")


class Stage:
    """`with Stage() as stage:`; `stage.heard()` is everything that anybody could have read."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._monitored: list[bytes] = []
        self._events: list[Any] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        variables = {
            "SENDER_LOG_LEVEL": "debug",
            "SENDER_LOG_FORMAT": "json",
            "SENDER_FLOWER_PASSWORD": FLOWER_PASSWORD,
            "SENDER_FLOWER_PORT": "0",
        }
        rehearsal = Rehearsal(scenario=SCENARIO, workers=1, flower=True, environment=variables)
        self.rehearsal = self._stack.enter_context(rehearsal)
        self.sender, self.data_dir = rehearsal.sender, rehearsal.data_dir
        self.sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=rehearsal.key_file)
        for listen in (self._monitor, self._hear_events):
            threading.Thread(target=listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._stack.__exit__(kind, error, trace)

    @property
    def settings(self) -> Settings:
        return load_settings(data_dir=self.data_dir)

    @property
    def redis(self) -> redis.Redis:
        return redis.Redis.from_url(self.settings.require_broker_url())

    def processes(self) -> dict[str, int]:
        """The processes of the stack that the stack supervises: name -> pid."""
        written = json.loads((self.data_dir / PROCESSES_FILE).read_text())["processes"]
        return {each["name"]: each["pid"] for each in written}

    def passwords(self) -> set[str]:
        """Every password of the installation."""
        return {*json.loads((self.data_dir / "secrets.json").read_text()).values(), FLOWER_PASSWORD}

    # --- what was said ----------------------------------------------------------------------------------------------

    def heard(self) -> dict[str, bytes]:
        """Source -> all that was said there; what is base64 in it is there decoded, too."""
        self._catch_up()
        found = {str(path.relative_to(self.data_dir)): path.read_bytes() for path in (self.data_dir / "logs").iterdir()}
        found["up.log"] = (self.rehearsal.directory / "up.log").read_bytes()
        found["events"] = json.dumps(self._events).encode()
        found["broker commands"] = b"\n".join(self._monitored)
        found["broker keys"] = self._dump()
        found["command lines"] = self._command_lines()
        return {source: text + b"\n" + _decoded(text) for source, text in found.items()}

    def _catch_up(self) -> None:
        """Wait until both listeners have heard what was said up to now: they hear a mark that comes after it."""
        from celery import Celery
        from celery.events import EventDispatcher

        mark = uuid.uuid4().hex
        self.redis.echo(mark)
        app = Celery(broker=self.settings.require_broker_url(), set_as_current=False)
        with Connection(self.settings.require_broker_url()) as connection:
            EventDispatcher(connection, hostname=mark, app=app).send("mark-made")
        end = time.monotonic() + 60
        while not (
            any(mark.encode() in command for command in list(self._monitored))
            and any(event.get("hostname") == mark for event in list(self._events))
        ):
            assert time.monotonic() < end, "the listeners do not hear"
            time.sleep(0.02)

    def _dump(self) -> bytes:
        client = self.redis
        readers = {
            b"list": lambda key: client.lrange(key, 0, -1),
            b"hash": client.hgetall,
            b"set": client.smembers,
            b"zset": lambda key: client.zrange(key, 0, -1),
            b"string": client.get,
        }
        return b"\n".join(key + repr(readers[client.type(key)](key)).encode() for key in client.scan_iter())

    def _command_lines(self) -> bytes:
        up = psutil.Process(int(running_servers(self.data_dir)["pid"]))
        lines = []
        for process in [up, *up.children(recursive=True)]:
            with suppress(psutil.Error):
                lines.append("\0".join(process.cmdline()))
        assert len(lines) > 8
        return "\n".join(lines).encode()

    def _monitor(self) -> None:
        with suppress(redis.RedisError, OSError, ValueError), self.redis.monitor() as monitor:
            for command in monitor.listen():
                self._monitored.append(command["command"].encode("utf-8", "replace"))
                if self._over.is_set():
                    return

    def _hear_events(self) -> None:
        from celery.events import EventReceiver

        def hear(event: Any) -> None:
            self._events.append(event)
            if self._over.is_set():
                raise SystemExit

        from celery import Celery

        app = Celery(broker=self.settings.require_broker_url(), set_as_current=False)
        with suppress(Exception, SystemExit), Connection(self.settings.require_broker_url()) as connection:
            EventReceiver(connection, handlers={"*": hear}, app=app).capture(limit=None, timeout=None, wakeup=True)

    def event_types(self) -> set[str]:
        return {event["type"] for event in self._events}

    def log(self, name: str) -> str:
        return (self.data_dir / "logs" / f"{name}.log").read_text(errors="replace")


def _decoded(text: bytes) -> bytes:
    parts = []
    for found in _BASE64.findall(text):
        with suppress(binascii.Error, ValueError):
            parts.append(base64.b64decode(found + b"=" * (-len(found) % 4)))
    return b"\n".join(parts)


def write_devices(path: Path, count: int) -> list[tuple[str, str]]:
    """A file of devices; gives (token, user)."""
    import random

    chance = random.Random(99)
    devices = [
        (f"{chance.getrandbits(256):064x}", f"person-{chance.getrandbits(64):016x}@example.com") for _ in range(count)
    ]
    lines = [f"{token},{user},secret-plan-{number % 7}" for number, (token, user) in enumerate(devices)]
    path.write_text("\n".join(["token,user,plan", *lines]) + "\n")
    return devices
