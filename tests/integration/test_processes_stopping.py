"""Stopping a worker, on the real processes: what is under way is written down, what is not is given back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sender.client import Sender
from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, _write_key
from sender.settings import Settings
from sender.simulator import Scenario, Simulator, SimulatorConfig, load_provider_key
from sender.stack.commands import settings_environment
from sender.store.database import Database
from tests.integration.campaign_rows import PAYLOAD

SENDER = Path(sys.executable).with_name("sender")
#: More devices than can be in flight at once: a slow start lets out 500.
DEVICES, BATCH = 1_000, 25
NEVER = 600_000.0  # milliseconds


class Place:
    """An app on a simulated APNs, and a worker of all roles that sends to it."""

    def __init__(self, settings: Settings, database: Database, simulator: Simulator, directory: Path) -> None:
        self.settings = settings
        self.database = database
        self.simulator = simulator
        self.log = directory / "worker.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [SENDER, "worker", "--role", "all"],
                env={**os.environ, **settings_environment(self.settings)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.until(lambda: self.rows("SELECT FROM {s}.workers"))

    def send(self, **options: Any) -> None:
        """Start a campaign, and wait until its pushes are on their way: no answer has come yet."""
        with Sender(settings=self.settings) as sender:
            sender.campaigns.enqueue(BUNDLE_ID, key="c", payload=PAYLOAD, rate=None, batch_size=BATCH, **options)
        self.until(lambda: self.simulator.control.counters().requests >= BATCH)

    def signal(self, signum: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(signum)

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(timeout=60)

    def rows(self, statement: str) -> list[Any]:
        with self.database.transaction() as transaction:
            return transaction.execute(statement).fetchall()

    def until(self, happened: Callable[[], Any]) -> None:
        end = time.monotonic() + 60
        while not happened():
            assert self.process is not None and self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)

    @property
    def issued(self) -> int:
        """Pushes that APNs has seen."""
        return self.simulator.control.counters().requests

    def claimed(self) -> list[Any]:
        return self.rows("SELECT id FROM {s}.batches WHERE state = 'claimed'")

    def outcomes(self) -> dict[str, int]:
        return dict(self.rows("SELECT outcome, count(*) FROM {s}.deliveries GROUP BY 1"))


@pytest.fixture
def place(settings: Settings, database: Database, tmp_path: Path) -> Iterator[Callable[..., Place]]:
    """Make one with a latency (milliseconds) and settings."""
    made: list[Place] = []
    key_file = _write_key(tmp_path)
    key = load_provider_key(key_file, team_id=TEAM_ID, key_id=KEY_ID)

    def make(latency_ms: float, **values: Any) -> Place:
        config = SimulatorConfig(
            directory=tmp_path / "simulator",
            keys=(key,),
            topics=(BUNDLE_ID,),
            scenario=Scenario(latency_ms=latency_ms),
            record="counts",
            control_port=None,
        )
        simulator = Simulator(config)
        simulator.__enter__()
        values = {"worker_threads": 4, "backoff_scale": 0.01} | values
        urls = {"apns_production_url": simulator.url, "apns_sandbox_url": simulator.sandbox_url}
        here = settings.model_copy(update={**urls, "apns_ca_file": simulator.ca_file, **values})
        made.append(Place(here, database, simulator, tmp_path))
        with Sender(settings=here) as sender:
            sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=key_file)
        with database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO {s}.devices (app_id, token, environment) SELECT a.id, lpad(to_hex(n), 64, '0'), "
                "'production' FROM {s}.apps a, generate_series(1, %s) AS n",
                (DEVICES,),
            )
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        if each.process is not None:
            each.process.kill()
            each.process.wait()
        each.simulator.__exit__(None, None, None)


def test_a_first_signal_waits_for_the_answers_and_gives_the_rest_back(place: Callable[..., Place]) -> None:
    here = place(latency_ms=1000.0)
    here.send()
    here.signal(signal.SIGTERM)
    assert here.ended() == 0
    assert here.claimed() == []
    assert here.outcomes() == {"sent": here.issued}
    assert 0 < here.issued < DEVICES
    assert here.rows("SELECT FROM {s}.retries") == here.rows("SELECT FROM {s}.workers") == []


def test_answers_are_waited_for_only_so_long(place: Callable[..., Place]) -> None:
    here = place(latency_ms=NEVER, stop_timeout=1.0, apns_timeout=600.0)
    here.send()
    here.signal(signal.SIGTERM)
    assert here.ended() == 0
    assert here.claimed() == []
    waiting = here.rows("SELECT reason, count(*) FROM {s}.retries GROUP BY 1")
    assert waiting == [("NoAnswer", here.issued)] and here.outcomes() == {}


@pytest.mark.parametrize(
    "signals", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGQUIT)]
)
def test_a_second_signal_ends_at_once_after_recording(
    place: Callable[..., Place], signals: tuple[signal.Signals, ...]
) -> None:
    here = place(latency_ms=NEVER, stop_timeout=600.0, apns_timeout=600.0)
    here.send(delivery="at_most_once")
    here.signal(signals[0])
    here.until(lambda: "issuing_stopped" in here.log.read_text())
    assert here.claimed()  # it waits for answers
    here.signal(signals[1])
    here.ended()
    assert here.claimed() == []
    assert here.outcomes() == {"unknown": here.issued}
    assert here.rows("SELECT FROM {s}.intents") == []
    assert "Traceback" not in here.log.read_text()


def test_sigquit_ends_at_once_after_recording(place: Callable[..., Place]) -> None:
    here = place(latency_ms=NEVER, stop_timeout=600.0, apns_timeout=600.0)
    here.send()
    here.signal(signal.SIGQUIT)
    here.ended()
    assert here.claimed() == []
    assert here.rows("SELECT count(*) FROM {s}.retries") == [(here.issued,)]
    assert "Traceback" not in here.log.read_text()
