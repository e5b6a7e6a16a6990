"""How our processes speak to Redis: which transport, what a worker's messages leave there, and when events go out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import redis
from celery import Celery
from kombu.asynchronous.hub import Hub
from pydantic import SecretStr

from config import consumer
from config.celery import make_app
from config.transport import Channel, Transport, note_size
from sender.policy.pace import SMALL, SMALL_TIMES
from sender.settings import Settings
from sender.stack.commands import SENDING, Role


@pytest.fixture
def broker(settings: Settings, valkey_url: str) -> Iterator[redis.Redis]:
    """The broker, where nobody else's messages are noted."""
    client = redis.Redis.from_url(valkey_url)
    client.delete("unacked", "unacked_index")
    yield client
    client.close()


def app_of(settings: Settings, role: str) -> Celery:
    app = make_app(settings, role=role)
    app.set_default()
    return app


def take_one(app: Celery, settings: Settings, channel: Any) -> Any:
    """Publish a send, and take it without acknowledging it."""
    queue = settings.queue("campaign")
    app.send_task("sender.send", kwargs={"batch": 1, "campaign": "hello"}, queue=queue)
    taken: list[Any] = []
    found = app.amqp.queues[queue](channel)
    found.consume(callback=taken.append)
    end = time.monotonic() + 20
    while not taken and time.monotonic() < end:
        channel.connection.drain_events(channel.connection.client, timeout=1)
    return taken[0]


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
def test_our_processes_have_our_transport(settings: Settings, scheme: str) -> None:
    given = settings.model_copy(update={"broker_url": SecretStr(f"{scheme}://:secret@cache:6380/0")})
    connection = make_app(given).connection_for_write()
    assert connection.get_transport_cls() is Transport
    assert connection.as_uri() == f"{scheme}://:**@cache:6380/0"


def test_a_channel_keeps_its_client_until_its_pool_is_another(settings: Settings) -> None:
    with make_app(settings).connection_for_write() as connection, connection.channel() as channel:
        assert isinstance(channel, Channel)
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        with channel.conn_or_acquire(channel.client) as given:
            assert given is channel.client
        channel._disconnect_pools()  # as after a fork
        with channel.conn_or_acquire() as third:
            assert third is not first
            assert third.ping()


@pytest.mark.parametrize("role", Role)
def test_only_workers_that_take_nothing_but_sends_leave_it_to_the_database_what_they_took(
    settings: Settings, role: Role
) -> None:
    options = make_app(settings, role=role).conf.broker_transport_options
    assert options["ack_emulation"] is (role not in (Role.CAMPAIGN, Role.PRIORITY))
    assert set(SENDING) <= set(Role)


@pytest.mark.parametrize(("role", "noted"), [("campaign", 0), ("control", 1)])
def test_a_send_that_was_taken_and_not_acknowledged_is_put_back_at_the_end(
    settings: Settings, broker: redis.Redis, role: str, noted: int
) -> None:
    app = app_of(settings, role)
    queue = settings.queue("campaign")
    with app.connection_for_read() as connection:
        channel = connection.channel()
        take_one(app, settings, channel)
        assert (broker.llen(queue), broker.hlen("unacked")) == (0, noted)
        channel.close()
    assert (broker.llen(queue), broker.hlen("unacked")) == (1, 0)


def test_a_send_that_was_acknowledged_is_gone(settings: Settings, broker: redis.Redis) -> None:
    app = app_of(settings, "campaign")
    with app.connection_for_read() as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)
        message = take_one(app, settings, channel)
        assert not channel.qos.can_consume()
        message.ack()
        assert channel.qos.can_consume()
        channel.close()
    assert broker.llen(settings.queue("campaign")) == 0


def test_what_cannot_be_put_back_is_left_to_the_database_without_a_word_more(
    settings: Settings, broker: redis.Redis, capsys: pytest.CaptureFixture[str]
) -> None:
    app = app_of(settings, "campaign")
    with app.connection_for_read() as connection:
        channel = connection.channel()
        for _ in range(2):
            take_one(app, settings, channel)
        with mock.patch.object(Channel, "_restore", side_effect=redis.ConnectionError("gone")) as tried:
            channel.close()
    assert tried.call_count == 1
    assert "DUMP" not in capsys.readouterr().err
    assert broker.llen(settings.queue("campaign")) == 0


def test_a_worker_takes_more_messages_at_a_time_while_their_batches_are_small_and_all_in_one_go(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(settings, "campaign")
    queue = settings.queue("campaign")
    with app.connection_for_read() as connection:
        channel: Any = connection.channel()
        channel.basic_qos(0, 2 * SMALL_TIMES, False)
        for batch in range(20):
            app.send_task("sender.send", kwargs={"batch": batch, "campaign": "hello"}, queue=queue)
        taken: list[Any] = []
        app.amqp.queues[queue](channel).consume(callback=taken.append)

        def take() -> list[int]:
            """What one wait for a message brings."""
            before = len(taken)
            connection.drain_events(timeout=5)
            return [message.payload[1]["batch"] for message in taken[before:]]

        note_size(SMALL + 1)
        assert take() == [0, 1]
        assert not channel.qos.can_consume()
        note_size(SMALL)
        assert take() == [2, 3, 4, 5, 6, 7]
        assert not channel.qos.can_consume()
        for message in taken[:3]:
            message.ack()
        assert take() == [8, 9, 10]
        note_size(SMALL + 1)
        for message in taken[3:10]:
            message.ack()
        assert take() == [11]
        assert not channel.qos.can_consume()
        channel.close()


def test_events_of_tasks_are_published_together_and_the_last_ones_at_the_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "EVENTS_EVERY", 0.01)
    ours: Any = consumer.GuardedConsumer.__new__(consumer.GuardedConsumer)
    ours.blueprint, ours.event_dispatcher = mock.Mock(), mock.Mock()
    ours.connection_errors, ours.channel_errors = (ConnectionError,), ()
    hub = ours.hub = Hub()
    ours.register_with_event_loop(hub)
    for _ in range(10):
        ours.on_send_event_buffered()
    assert (hub._ready, ours.event_dispatcher.flush.call_count) == (set(), 0)
    time.sleep(0.02)
    hub.fire_timers()
    assert ours.event_dispatcher.flush.call_count == 1
    ours.event_dispatcher.flush.side_effect = ConnectionError
    ours.stop()
    assert ours.event_dispatcher.flush.call_count == 2
    hub.close()
