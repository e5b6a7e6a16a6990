"""Steps that are taken together: who leads, who waits, and what an error costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from sender.engine.together import MOST, Together
from sender.errors import DatabaseUnavailableError


def doubled(items: Sequence[int]) -> list[int | None]:
    return [2 * item for item in items]


def alone(item: int) -> int:
    raise AssertionError(f"{item} was left to itself")


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


class Crowd:
    """Threads that ask while a first one is held in its step."""

    def __init__(self) -> None:
        self.step: Together[int, int] = Together("test")
        self.groups: list[list[int]] = []
        self._go = threading.Event()
        self._threads = ThreadPoolExecutor(max_workers=32)

    def ask(
        self,
        items: Sequence[int],
        together: Callable[[Sequence[int]], Sequence[int | None]] = doubled,
        alone: Callable[[int], int] = alone,
        first: Callable[[Sequence[int]], Sequence[int | None]] = doubled,
    ) -> list[Future[int]]:
        """0 asks first, and is held until all the others wait; each asks with `together`, which is noted."""

        def held(group: Sequence[int]) -> Sequence[int | None]:
            assert self._go.wait(20)
            return first(group)

        def noted(group: Sequence[int]) -> Sequence[int | None]:
            self.groups.append(list(group))
            return together(group)

        asked = [self._threads.submit(self.step.do, 0, together=held, alone=alone)]
        wait_until(lambda: self.step._busy and not self.step._waiting)
        for item in items:
            asked.append(self._threads.submit(self.step.do, item, together=noted, alone=alone))
            wait_until(lambda: len(self.step._waiting) == len(asked) - 1)
        self._go.set()
        return asked


def test_whoever_finds_nobody_goes_at_once() -> None:
    step: Together[int, int] = Together("test")
    assert [step.do(item, together=doubled, alone=alone) for item in (1, 2)] == [2, 4]


def test_those_who_come_while_a_step_is_taken_go_together_in_the_next() -> None:
    crowd = Crowd()
    asked = crowd.ask([1, 2, 3])
    assert [each.result(20) for each in asked] == [0, 2, 4, 6]
    assert crowd.groups == [[1, 2, 3]]


def test_what_a_step_did_nothing_for_is_done_alone() -> None:
    crowd = Crowd()
    asked = crowd.ask(
        [1, 2, 3], together=lambda group: [None if item == 2 else item for item in group], alone=lambda item: -item
    )
    assert [each.result(20) for each in asked[1:]] == [1, -2, 3]


def test_a_group_that_breaks_is_done_one_by_one_and_only_the_bad_one_fails() -> None:
    def broken(group: Sequence[int]) -> list[int | None]:
        raise ValueError("one of them is bad")

    def by_itself(item: int) -> int:
        if item == 2:
            raise ValueError("the bad one")
        return item

    crowd = Crowd()
    asked = crowd.ask([1, 2, 3], together=broken, alone=by_itself)
    with pytest.raises(ValueError, match="the bad one"):
        asked[2].result(20)
    assert [asked[at].result(20) for at in (1, 3)] == [1, 3]
    assert crowd.step.do(4, together=doubled, alone=alone) == 8  # and it goes on


def test_those_who_came_while_the_database_went_away_do_not_wait_for_it_one_after_the_other() -> None:
    def away(group: Sequence[int]) -> list[int | None]:
        raise DatabaseUnavailableError("away")

    crowd = Crowd()
    asked = crowd.ask([1, 2], first=away, alone=lambda item: -item)
    assert [each.result(20) for each in asked] == [0, -1, -2]
    assert crowd.groups == []


def test_a_group_has_its_bound() -> None:
    crowd = Crowd()
    crowd._threads = ThreadPoolExecutor(max_workers=MOST + 4)
    asked = crowd.ask(range(1, MOST + 3))
    assert [each.result(20) for each in asked] == [2 * item for item in range(MOST + 3)]
    assert [len(group) for group in crowd.groups] == [MOST, 2]


def test_of_many_threads_each_gets_its_own_and_nothing_is_done_twice() -> None:
    step: Together[int, int] = Together("test")
    done: list[int] = []  # grows by one leader at a time, and by those who are left to themselves

    def together(group: Sequence[int]) -> list[int | None]:
        if any(item % 101 == 100 for item in group):
            raise ValueError("a bad one")
        done.extend(item for item in group if item % 5)
        return [item if item % 5 else None for item in group]

    def by_itself(item: int) -> int:
        done.append(item)
        return item

    with ThreadPoolExecutor(max_workers=16) as threads:
        results = list(threads.map(lambda item: step.do(item, together=together, alone=by_itself), range(2000)))
    assert results == list(range(2000))
    assert sorted(done) == list(range(2000))
