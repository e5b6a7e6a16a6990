"""What is published later is published once, in its order, also at the end, and never when it could be lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from sender.engine.later import LONGEST, Later


class Queue:
    """Remembers what was published, and lets a test wait for it."""

    def __init__(self, wanted: int, *, broken: bool = False) -> None:
        self.published: list[tuple[str, int, bool]] = []
        self._wanted, self._broken = wanted, broken
        self.full = threading.Event()

    def publish(self, key: str, batch_ids: Sequence[int], urgent: bool) -> None:
        if self._broken:
            self._broken = False
            raise ConnectionError("redis is away")
        self.published += [(key, batch_id, urgent) for batch_id in batch_ids]
        if len(self.published) >= self._wanted:
            self.full.set()


def test_batches_are_published_in_the_order_of_their_times(monkeypatch: pytest.MonkeyPatch) -> None:
    later, queue = Later(), Queue(3)
    began, given = time.monotonic(), threading.Event()
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() if given.is_set() else began)
    monkeypatch.setattr("sender.engine.later.time", clock)
    later.start(queue.publish)
    for seconds, batch_id in ((0.3, 3), (0.1, 1), (0.2, 2)):
        assert later.publish("spring", [batch_id], seconds=seconds, urgent=False)
    given.set()
    assert queue.full.wait(10)
    assert [batch_id for _, batch_id, _ in queue.published] == [1, 2, 3]
    later.close()


def test_what_is_left_at_the_end_is_published_at_once() -> None:
    later, queue = Later(), Queue(2)
    later.start(queue.publish)
    assert later.publish("spring", [1], seconds=LONGEST, urgent=False)
    assert later.publish("now", [2], seconds=LONGEST, urgent=True)
    later.close()
    assert queue.published == [("spring", 1, False), ("now", 2, True)]
    assert not later.publish("spring", [3], seconds=0, urgent=False)


def test_what_is_far_off_is_left_to_the_database() -> None:
    later, queue = Later(), Queue(1)
    assert not later.publish("spring", [1], seconds=0, urgent=False)  # nothing to publish with
    later.start(queue.publish)
    assert not later.publish("spring", [1], seconds=LONGEST + 1, urgent=False)
    later.close()
    assert queue.published == []


def test_a_broker_that_is_away_does_not_end_it() -> None:
    later, queue = Later(), Queue(1, broken=True)
    later.start(queue.publish)
    assert later.publish("spring", [1], seconds=0, urgent=False)
    assert later.publish("spring", [2], seconds=0.2, urgent=False)
    assert queue.full.wait(10)
    assert queue.published == [("spring", 2, False)]
    later.close()
