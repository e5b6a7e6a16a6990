"""A process that stood still (SIGSTOP, a laptop that slept): what APNs answered meanwhile counts."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from sender.model import ACCEPTED, Accepted, NotProcessed, Unknown
from sender.simulator import Behaviour, Rule, SimulatorProcess
from tests.contract.conftest import Bench, pushes

#: Seconds that a push may wait, and that the process stands still: all deadlines pass meanwhile.
DEADLINE, STILL = 0.5, 1.5


@pytest.fixture(scope="module")
def apart() -> Iterator[SimulatorProcess]:
    """A simulator that goes on while this process stands still."""
    with SimulatorProcess("--accept-any-key", "--latency-ms", "30") as running:
        yield running


def stall(bench: Bench, count: int, still: float = STILL) -> Counter[type]:
    """What becomes of pushes that are in flight, or wait behind those, when the process stands still."""

    async def test() -> Counter[type]:
        client = bench.client()
        await client.send(pushes(50), timeout=10)  # the connection has its streams
        waiting = client.send(pushes(count), timeout=DEADLINE)
        await asyncio.sleep(0.01)  # some are written
        time.sleep(still)  # the event loop stands, as everything in the process does
        return Counter(map(type, await waiting))

    return bench.run(test)


@pytest.mark.parametrize("still", [STILL, DEADLINE + 0.05])  # or until a moment after the deadlines
@pytest.mark.parametrize("count", [300, 900, 2_000])
def test_what_apns_took_before_the_process_stood_still_is_accepted_and_nothing_is_written_after_it(
    bench: Bench, apart: SimulatorProcess, count: int, still: float
) -> None:
    apart.control.reset()
    answers = stall(bench.at(apart), count, still)
    taken = apart.control.counters().delivered - 50
    assert taken > 0
    assert answers == +Counter({Accepted: taken, NotProcessed: count - taken})


def test_what_is_never_answered_is_unknown_a_moment_later(bench: Bench, apart: SimulatorProcess) -> None:
    silent = pushes(3)

    async def test() -> list[object]:
        client = bench.at(apart).client()
        assert await client.send(pushes(5), timeout=10) == [ACCEPTED] * 5
        waiting = client.send(silent, timeout=DEADLINE)
        await asyncio.sleep(0.01)
        time.sleep(STILL)
        return await waiting

    apart.control.set_rules([Rule(tokens=tuple(each.token for each in silent), behaviour=Behaviour.SILENT)])
    try:
        assert bench.run(test) == [Unknown(cause="timeout")] * 3
    finally:
        apart.control.set_rules([])
