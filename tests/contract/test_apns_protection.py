"""What the client does for whoever protects a credential: takes back, counts, and forgives what is no trouble."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sender.apns import attempts
from sender.apns import clients as clients_module
from sender.apns import pool as pool_module
from sender.apns.clients import Clients
from sender.apns.health import Health
from sender.model import Accepted, NotProcessed, Rejected, Unknown
from sender.simulator import Behaviour, GoAway, Rule, Scenario, Settings, SettingsChange, Simulator
from tests.contract.conftest import Bench, push, pushes


@pytest.fixture
def there(bench: Bench, simulator: Simulator) -> Bench:
    return bench.at(simulator)


async def until(happened: Callable[[], bool], *, within: float = 10.0) -> None:
    end = time.monotonic() + within
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.02)


# --- recall -----------------------------------------------------------------------------------------------------------


def test_what_was_not_written_is_taken_back_and_what_was_gets_its_answer(there: Bench, simulator: Simulator) -> None:
    many = pushes(100)
    late = Rule(tokens=tuple(each.token for each in many), latency_ms=1000)
    simulator.control.set_scenario(Scenario(rules=(late,), settings=Settings(max_concurrent_streams=10)))

    async def test() -> None:
        client = there.client()
        await client.send([push()], timeout=5)
        one, other = client.send(many, timeout=20), client.send(pushes(30), timeout=20)
        while client.snapshot().in_flight < 10:
            await asyncio.sleep(0)
        assert client.recall([one]) == 90
        assert await one == [Accepted()] * 10 + [NotProcessed(cause="recalled")] * 90
        assert await other == [Accepted()] * 30

    there.run(test)
    assert simulator.control.counters().requests == 41


def test_recalling_what_is_all_written_or_answered_takes_nothing_back(there: Bench) -> None:
    async def test() -> None:
        client = there.client()
        sent = client.send(pushes(5), timeout=5)
        assert await sent == [Accepted()] * 5
        assert client.recall([sent]) == 0

    there.run(test)


def test_recalling_makes_room_for_whoever_waits_for_it(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(
        Scenario(
            settings=Settings(max_concurrent_streams=1), rules=(Rule(prefix="", behaviour=Behaviour.SILENT, tries=0),)
        )
    )

    async def test() -> None:
        client = there.client()
        sent = client.send(pushes(400), timeout=20)
        waiting = asyncio.ensure_future(client.ready())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert client.recall([sent]) >= 399
        await asyncio.wait_for(waiting, 20)

    there.run(test)


# --- goaways ----------------------------------------------------------------------------------------------------------


def test_clean_goaways_before_the_first_answer_hold_nothing_up(there: Bench, simulator: Simulator) -> None:
    goaway = GoAway(after_requests=(20, 20), reason="Shutdown", close_after_ms=None)
    simulator.control.set_scenario(Scenario(latency_ms=60, goaway=goaway, settings=Settings(streams_before_auth=1000)))

    async def test() -> Health:
        client = there.client()
        left = pushes(200)
        while left:
            answers = await client.send(left, timeout=20)
            assert all(isinstance(answer, Accepted | NotProcessed) for answer in answers)
            assert NotProcessed(cause="connect: goaway: Shutdown") not in answers
            left = [each for each, answer in zip(left, answers, strict=True) if answer != Accepted()]
        health: Health = client.snapshot()
        return health

    health = there.run(test)
    assert health.counts["goaways"] >= 8
    assert health.counts["goaway_errors"] == 0
    assert health.counts.get("failures", 0) == 0
    assert health.failures_in_a_row == 0


def test_the_answer_that_comes_after_a_goaway_ends_the_wait_of_what_came_next(
    there: Bench, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "FIRST_PAUSE", 60.0)  # without that answer
    late = push()
    simulator.control.set_scenario(Scenario(rules=(Rule(tokens=(late.token,), latency_ms=2000),)))

    async def test() -> None:
        client = there.client()
        first = asyncio.ensure_future(client.send([late], timeout=30))
        await until(lambda: client.snapshot().in_flight == 1)
        await asyncio.to_thread(simulator.control.goaway, reason="Shutdown", close_after_ms=20_000)
        await until(lambda: client.snapshot().counts.get("goaways") == 1)
        assert not first.done()  # else this proves nothing
        second = client.send([push()], timeout=30)
        assert await first == await second == [Accepted()]

    there.run(test)


def test_a_goaway_on_a_connection_that_was_not_used_is_no_failure(
    there: Bench, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "USEFUL_AFTER", 0.0)  # it is old

    async def test() -> None:
        client = there.client()
        await client.connected()
        await asyncio.to_thread(simulator.control.goaway, reason="IdleTimeout")
        await until(lambda: not client.snapshot().connections and not client.snapshot().draining)
        health = client.snapshot()
        assert (health.failures_in_a_row, health.counts.get("failures", 0)) == (0, 0)

    there.run(test)


def test_a_server_that_says_goodbye_to_every_fresh_connection_is_left_alone_for_a_while(
    there: Bench, simulator: Simulator
) -> None:
    goaway = GoAway(after_requests=(1, 1), above=1, close_after_ms=0)
    simulator.control.set_scenario(Scenario(goaway=goaway))

    async def test() -> None:
        client = there.client()
        end = time.monotonic() + 4
        while time.monotonic() < end or client.snapshot().counts.get("failures", 0) < 3:
            assert {type(answer) for answer in await client.send(pushes(3), timeout=20)} == {NotProcessed}
            await asyncio.sleep(0.05)

    there.run(test)
    assert simulator.control.counters().connections_opened <= 10


def test_a_goaway_with_an_error_is_told_from_a_clean_one(there: Bench, simulator: Simulator) -> None:
    async def test() -> None:
        client = there.client()
        for options in ({"error_code": 11}, {"reason": "BadCertificate"}, {"reason": "Shutdown"}, {"debug": "bye"}):
            assert await client.send([push()], timeout=5) == [Accepted()]
            simulator.control.goaway(**options)
            await until(lambda: not client.snapshot().connections)
        counts = client.snapshot().counts
        assert (counts["goaways"], counts["goaway_errors"]) == (4, 2)

    there.run(test)


# --- connections that take their leave --------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "connections"), [(True, 2), (False, 1)], ids=["an old one", "a new one"])
@pytest.mark.parametrize(
    ("status", "reason"), [(503, "Shutdown"), (400, "IdleTimeout"), (429, "TooManyProviderTokenUpdates")]
)
def test_what_comes_after_an_answer_that_ends_a_connection_goes_out_on_another_but_never_in_a_storm(
    there: Bench,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    reason: str,
    old: bool,
    connections: int,
) -> None:
    monkeypatch.setattr(pool_module, "USEFUL_AFTER", 0.0 if old else 10.0)
    simulator.control.set_rules([Rule(prefix="ffffffff", status=status, reason=reason)])

    async def test() -> None:
        client = there.client()
        answers = await client.send([push(), push("ff" * 32), push()], timeout=5)
        assert answers == [Accepted(), Rejected(status=status, reason=reason), Accepted()]
        assert await client.send(pushes(5), timeout=5) == [Accepted()] * 5

    there.run(test)
    assert simulator.control.counters().connections_opened == connections


# --- what is counted --------------------------------------------------------------------------------------------------


def test_every_answer_counts_once_whatever_became_of_its_connection(there: Bench, simulator: Simulator) -> None:
    async def test() -> None:
        client = there.client()
        for _ in range(3):
            await client.send(pushes(10), timeout=5)
            await client.renew()
        await until(lambda: not client.snapshot().draining)
        assert client.snapshot().answered == 30

    there.run(test)


def test_a_stream_limit_that_falls_is_counted_and_one_that_rises_is_not(there: Bench, simulator: Simulator) -> None:
    async def test() -> None:
        client = there.client()
        await client.send(pushes(10), timeout=5)
        for limit in (100, 1, 500):
            simulator.control.change_settings(SettingsChange(after_seconds=0, max_concurrent_streams=limit))
            await until(lambda limit=limit: client.snapshot().stream_limit == limit)  # type: ignore[misc]
        assert client.snapshot().counts["limit_falls"] == 2

    there.run(test)


def test_refused_streams_count_but_not_those_above_a_goaway(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(rules=(Rule(prefix="", behaviour=Behaviour.REFUSED, tries=0),)))

    async def test() -> None:
        client = there.client()
        await client.send(pushes(5), timeout=5)
        simulator.control.set_scenario(Scenario(goaway=GoAway(after_requests=(10, 10), above=5, connections=1)))
        await client.renew()
        await client.send(pushes(10), timeout=5)
        assert client.snapshot().counts["refused"] == 5

    there.run(test)


def test_deadlines_and_connections_that_break_in_flight_count(there: Bench, simulator: Simulator) -> None:
    simulator.control.set_scenario(Scenario(rules=(Rule(prefix="ffffffff", behaviour=Behaviour.SILENT, tries=0),)))

    async def test() -> None:
        client = there.client()
        assert await client.send([push()], timeout=5) == [Accepted()]
        assert await client.send([push("ff" * 32)] * 3, timeout=0.2) == [Unknown(cause="timeout")] * 3
        before = simulator.control.counters().requests
        waiting = client.send([push("ff" * 32)], timeout=30)
        await until(lambda: simulator.control.counters().requests > before)
        simulator.control.drop()
        await waiting
        counts = client.snapshot().counts
        assert (counts["unanswered"], counts["broken"]) == (3, 1)
        assert await client.send([push()], timeout=5) == [Accepted()]
        simulator.control.drop()  # nothing is in flight: no harm
        await until(lambda: client.snapshot().counts["lost"] == 2)
        assert client.snapshot().counts["broken"] == 1

    there.run(test)


def test_a_revived_client_tries_to_connect_at_once(there: Bench, simulator: Simulator) -> None:
    simulator.control.refuse(1000, drop=True)

    async def test() -> None:
        client = there.client()
        while not client.snapshot().down or client.snapshot().failures_in_a_row < 8:
            client.revive()
            await client.send([push()], timeout=5)
        assert client.snapshot().unreachable_for > 0
        simulator.control.set_scenario(Scenario())
        await asyncio.sleep(0.3)
        assert (await client.send([push()], timeout=5))[0].cause.startswith("connect")
        client.revive()
        assert await client.send([push()], timeout=5) == [Accepted()]
        assert client.snapshot().unreachable_for == 0

    there.run(test)


# --- keys that move -----------------------------------------------------------------------------------------------


def test_a_key_that_moved_to_another_file_is_taken_up_and_the_old_client_goes_in_order(
    there: Bench, simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients_module, "SUPERSEDED", 0.2)
    simulator.control.set_scenario(Scenario(latency_ms=400))
    moved = replace(there.ref, file=str(tmp_path / "moved.p8"))
    Path(moved.file).write_bytes(Path(there.ref.file).read_bytes())

    async def test() -> None:
        clients = Clients(there.settings())
        old = clients.get(there.ref)
        waiting = old.send(pushes(5), timeout=20)
        new = clients.get(moved)
        assert new is not old
        assert new is clients.get(moved)
        assert list(clients.snapshots()) == [there.ref.identity]
        assert await new.send(pushes(5), timeout=20) == [Accepted()] * 5
        assert await waiting == [Accepted()] * 5
        await until(lambda: clients.snapshots()[moved.identity].connections == 1)
        assert clients.snapshots()[moved.identity].answered == 5
        await clients.close(timeout=1)

    there.run(test)


def test_two_apps_with_copies_of_a_key_do_not_disturb_each_other(
    there: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(there.ref, file=str(tmp_path / "copy.p8"))
    Path(other.file).write_bytes(Path(there.ref.file).read_bytes())

    async def test() -> None:
        loop, passed = asyncio.get_running_loop(), 0.0
        real = loop.time
        monkeypatch.setattr(loop, "time", lambda: real() + passed)
        clients = Clients(there.settings())
        first = clients.get(there.ref)
        for _ in range(12):
            for ref in (there.ref, other):
                assert await clients.get(ref).send([push()], timeout=5) == [Accepted()]
            passed += clients_module.SUPERSEDED * 0.75
            await asyncio.sleep(0.01)
        assert clients.get(there.ref) is first
        health = clients.snapshots()[there.ref.identity]
        assert (health.connections, health.answered, health.counts["connects"]) == (2, 24, 2)
        await clients.close(timeout=1)

    there.run(test, timeout=100_000)  # of a clock that is put forward
