"""The embedded Valkey through what happens to a server on somebody's machine."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import redis

from sender.errors import StackError
from sender.stack.account import forget_homes
from sender.stack.datadir import DataDirectory
from sender.stack.valkey import Valkey


@pytest.fixture
def data() -> Iterator[DataDirectory]:
    data = DataDirectory(Path(tempfile.mkdtemp(prefix="sender-test-", dir="/tmp")))
    data.create()
    yield data
    forget_homes(data)
    shutil.rmtree(data.path)


@pytest.fixture
def server(data: DataDirectory) -> Iterator[Valkey]:
    server = Valkey(data)
    server.start()
    yield server
    server.stop(now=True)


def _client(server: Valkey) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def test_what_was_queued_is_there_after_a_restart_on_the_same_port(data: DataDirectory, server: Valkey) -> None:
    _client(server).rpush("queue", "message")
    url = server.url
    server.stop()
    again = Valkey(data)
    again.start()
    try:
        assert again.url == url
        assert _client(again).lrange("queue", 0, -1) == [b"message"]
    finally:
        again.stop(now=True)


def test_what_was_queued_is_there_after_kill_9(server: Valkey) -> None:
    _client(server).rpush("queue", "message")
    psutil.Process(server.pid).kill()
    assert server._process is not None and server._process.wait() == -signal.SIGKILL
    server.start()
    assert _client(server).lrange("queue", 0, -1) == [b"message"]


def test_a_port_that_another_program_has_taken_is_changed_and_the_other_program_left_alone(
    data: DataDirectory, server: Valkey
) -> None:
    _client(server).rpush("queue", "message")
    server.stop()
    with socket.create_server(("127.0.0.1", server._port)) as stranger:
        again = Valkey(data)
        again.start()
        try:
            assert again._port != stranger.getsockname()[1]
            assert _client(again).llen("queue") == 1
        finally:
            again.stop(now=True)


def test_a_server_that_outlived_its_stack_is_ended_and_its_port_taken_over(data: DataDirectory, server: Valkey) -> None:
    _client(server).rpush("queue", "message")
    successor = Valkey(data)
    successor.start()
    try:
        assert not server.alive()
        assert successor.url == server.url
        assert _client(successor).llen("queue") == 1
    finally:
        successor.stop(now=True)


def test_its_password_is_not_among_its_arguments_and_it_has_a_session_of_its_own(
    data: DataDirectory, server: Valkey
) -> None:
    assert data.secret("valkey") not in " ".join(psutil.Process(server.pid).cmdline())
    assert server.pid is not None
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_a_server_that_dies_at_its_start_shows_the_end_of_its_log(data: DataDirectory, server: Valkey) -> None:
    server.stop()
    assert server._home is not None
    for file in (server._home.state / "appendonlydir").glob("*.manifest"):
        file.write_text("damaged\n")
    with pytest.raises(StackError, match="manifest"):
        server.start()
