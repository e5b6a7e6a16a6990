"""A rehearsal: the whole stack and a simulated APNs in a directory of their own, with an app and devices of every
kind, all gone afterwards. What `sender demo` shows."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sender.client import Sender
from sender.errors import SenderError
from sender.settings import Settings, load_settings
from sender.simulator import ProviderKey, Scenario, Shares, Simulator, SimulatorConfig, behaviour_of, load_provider_key
from sender.stack.throwaway import DATA, throwaway

BUNDLE_ID = "com.example.news"
TEAM_ID, KEY_ID = "DEMOTEAM01", "DEMOKEY001"

#: What the devices of the rehearsal are like.
SHARES = Shares(
    unregistered=0.03, stale_unregistered=0.01, other_environment=0.01, wrong_topic=0.005, throttled=0.01, errors=0.01
)

SCENARIO = Scenario(seed=7, shares=SHARES)

#: Rests and retries take this share of their real time, so that a rehearsal ends.
BACKOFF_SCALE = 0.005

_READY_WITHIN = 90.0  # seconds


class Rehearsal:
    """`with Rehearsal() as rehearsal:` has everything running; `rehearsal.sender` is a sender on it."""

    def __init__(
        self,
        *,
        scenario: Scenario = SCENARIO,
        workers: int = 2,
        flower: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`environment` holds further SENDER_* variables for the stack."""
        self.scenario = scenario
        self._workers = workers
        self._flower = flower
        self._variables = dict(environment or {})
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self.directory = self._stack.enter_context(throwaway())
        try:
            self.key_file = _write_key(self.directory)
            self.simulator = self._stack.enter_context(self._make_simulator())
            self._stack.callback(stop_process, self._start_stack())
            self.sender = self._stack.enter_context(Sender(settings=self._settings()))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def write_devices(self, count: int) -> Path:
        """A CSV file of made-up devices: all of them look alike until APNs is asked."""
        chance = random.Random(self.scenario.seed)  # noqa: S311 (made-up tokens)
        path = self.directory / "devices.csv"
        registered = (datetime.now(UTC) - timedelta(days=60)).isoformat(timespec="seconds")
        places = (("fr-FR", "Europe/Paris"), ("en-US", "America/New_York"), ("de-DE", "Europe/Berlin"))
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("token", "user", "environment", "locale", "timezone", "registered_at", "plan"))
            for number in range(count):
                token = f"{chance.getrandbits(256):064x}"
                plan = "pro" if chance.random() < 0.3 else "free"
                writer.writerow((token, f"u-{number}", "production", *places[number % 3], registered, plan))
        return path

    def kinds(self, devices: Path) -> Counter[str]:
        """How many devices of each kind a file of `write_devices` holds, by the simulator's own rules."""
        with devices.open(newline="") as file:
            return Counter(
                behaviour_of(row["token"], self.scenario.shares, self.scenario.seed).value
                for row in csv.DictReader(file)
            )

    def _make_simulator(self) -> Simulator:
        key: ProviderKey = load_provider_key(self.key_file, team_id=TEAM_ID, key_id=KEY_ID)
        config = SimulatorConfig(
            directory=self.directory / "simulator",
            keys=(key,),
            topics=(BUNDLE_ID,),
            scenario=self.scenario,
            record="counts",
            control_port=None,
        )
        return Simulator(config)

    @property
    def environment(self) -> dict[str, str]:
        """The environment in which `sender` commands find this rehearsal."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SENDER_")}
        return kept | {
            "SENDER_DATA_DIR": str(self.data_dir),
            "SENDER_APNS_PRODUCTION_URL": self.simulator.url,
            "SENDER_APNS_SANDBOX_URL": self.simulator.sandbox_url,
            "SENDER_APNS_CA_FILE": str(self.simulator.ca_file.resolve()),
            "SENDER_BACKOFF_SCALE": str(BACKOFF_SCALE),
            **self._variables,
        }

    @property
    def data_dir(self) -> Path:
        """The stack's data directory."""
        return self.directory / DATA

    def _start_stack(self) -> subprocess.Popen[bytes]:
        return start_up(
            "--flower" if self._flower else "--no-flower",
            *("--workers", str(self._workers)),
            log=self.directory / "up.log",
            environment=self.environment,
        )

    def _settings(self) -> Settings:
        given = {name.removeprefix("SENDER_").lower(): value for name, value in self._variables.items()}
        found = load_settings(data_dir=self.data_dir, **given)
        return found.model_copy(update={"apns_ca_file": self.simulator.ca_file.resolve()})


def start_up(*options: str, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a `sender up` that writes this log, and wait until it is ready. It is in a session of its own, so that no
    Ctrl-C reaches it, and stops in order by itself when this process is gone. Raises `SenderError`."""
    command = [sys.executable, "-P", "-c", "from sender.cli import main; main()", "up", "--until-stdin-ends"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, *options],
            stdin=subprocess.PIPE,  # nothing is written to it: its end says that we are gone
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_ready(process, log)
    except BaseException:
        stop_process(process)
        raise
    return process


def wait_ready(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a `sender up` that writes this log is ready. Raises `SenderError` with the end of the log."""
    end = time.monotonic() + _READY_WITHIN
    while time.monotonic() < end and process.poll() is None:
        if "ready" in log.read_text(errors="replace").splitlines():
            return
        time.sleep(0.1)
    said = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    raise SenderError(f"`sender up` did not get ready:\n{said}")


def stop_process(process: subprocess.Popen[bytes]) -> None:
    """Have a `sender up` drain and end; kill it when it does not within a minute."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()  # not before: its end would be a second signal


def _write_key(directory: Path) -> Path:
    path = directory / f"AuthKey_{KEY_ID}.p8"
    key = ec.generate_private_key(ec.SECP256R1())
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return path
