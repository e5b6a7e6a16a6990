"""The event loop thread: one a process, lazily, also after a fork."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

from sender.apns.loop import EventLoopThread


async def where() -> tuple[int, str]:
    return id(asyncio.get_running_loop()), threading.current_thread().name


def test_all_threads_share_one_loop_that_starts_with_the_first_use() -> None:
    thread = EventLoopThread()
    assert not thread.running
    seen: list[tuple[int, str]] = []
    callers = [threading.Thread(target=lambda: seen.append(thread.run(where()))) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(set(seen)) == 1
    assert seen[0][1] == "sender-apns"
    thread.stop()
    assert not thread.running


def test_a_stopped_loop_starts_again() -> None:
    thread = EventLoopThread()
    thread.run(where())
    thread.stop()
    assert thread.run(where())
    thread.stop()


def test_running_out_of_time_does_not_cancel() -> None:
    thread = EventLoopThread()
    finished = threading.Event()

    async def slow() -> None:
        await asyncio.sleep(0.1)
        finished.set()

    with pytest.raises(TimeoutError):
        thread.run(slow(), timeout=0.01)
    assert finished.wait(5)
    thread.stop()


def test_waiting_for_itself_is_refused() -> None:
    thread = EventLoopThread()

    async def inside() -> None:
        thread.run(where())

    with pytest.raises(RuntimeError, match="event loop itself"):
        thread.run(inside())
    thread.stop()


def test_a_forked_child_gets_a_loop_of_its_own() -> None:
    thread = EventLoopThread()
    thread.run(where())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"yes" if not thread.running and thread.run(where(), timeout=10) else b"no")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 3) == b"yes"
    assert thread.running
    thread.stop()
    os.close(reading)
    os.close(writing)
