"""A million devices enqueued, and nobody to send: Redis must not hold the campaign, only what workers take
in a moment."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
import redis

from sender.client import Sender
from sender.engine.fanout import LEAST_READY, MOST_OPEN
from sender.payload import Alert, Payload
from sender.settings import Settings
from sender.stack.commands import settings_environment
from sender.store import apps
from sender.store.database import Database

BUNDLE = "com.example.million"


@contextmanager
def running(settings: Settings, *arguments: str) -> Iterator[None]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SENDER_")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from sender.cli import main; main()", *arguments],
        env=environment | settings_environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def million(database: Database) -> None:
    with database.transaction() as transaction:
        app_id = apps.add(transaction, BUNDLE)
        transaction.execute(
            "INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id) "
            "VALUES (%s, 'production', 'key', '/nowhere.p8', 'TEAM123456', 'KEY1234567')",
            (app_id,),
        )
        transaction.execute(
            "INSERT INTO {s}.devices (app_id, token, environment) "
            "SELECT %s, lpad(to_hex(n), 64, '0'), 'production' FROM generate_series(1, 1000000) AS n",
            (app_id,),
        )


@pytest.mark.slow
@pytest.mark.usefixtures("million")
def test_redis_never_holds_more_than_a_dozen_messages_that_nobody_takes(
    settings: Settings, sender: Sender, database: Database
) -> None:
    with ExitStack() as stack:
        stack.enter_context(running(settings, "worker", "--role", "control"))
        stack.enter_context(running(settings, "beat"))
        for batch_size in (1, 500):
            key = f"million-{batch_size}"
            lengths = enqueue_and_watch(settings, sender, key, batch_size)
            assert max(lengths) == LEAST_READY  # it was reached, and never passed
            with database.transaction() as transaction:
                row = transaction.execute("SELECT cut_devices FROM {s}.campaigns WHERE key = %s", (key,)).fetchone()
            assert row == (MOST_OPEN * batch_size,)


def enqueue_and_watch(settings: Settings, sender: Sender, key: str, batch_size: int) -> list[int]:
    """How many messages wait for campaign workers, looked at for at least three seconds; the campaign is then over."""
    broker = redis.Redis.from_url(settings.require_broker_url())
    queue = settings.queue("campaign")
    payload = Payload(alert=Alert(title="Hello", body="World"))
    sender.campaigns.enqueue(BUNDLE, key=key, payload=payload, rate=None, batch_size=batch_size)
    lengths: list[int] = []
    end = time.monotonic() + 60
    while time.monotonic() < end and (not lengths or max(lengths) < LEAST_READY or len(lengths) < 30):
        lengths.append(int(broker.llen(queue)))  # type: ignore[arg-type]
        time.sleep(0.1)
    sender.campaigns.cancel(key)
    broker.delete(queue)
    return lengths
