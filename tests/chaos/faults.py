"""Everything that is done to a running campaign, as a table: what it is called, how often it is drawn, what it does and
for how long, what it may have APNs see twice, and what it may leave unknown at most once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

import redis

from sender.errors import TransitionError
from sender.rehearsal import BUNDLE_ID
from sender.simulator import GoAway, OutageKind, Scenario, Shares, Storm
from tests.chaos.flight import Harm
from tests.chaos.scene import Scene, insisting
from tests.chaos.stack import APNS_TIMEOUT, LEASE, SCENARIO, WORKERS

Strike: TypeAlias = Callable[[Scene, Random], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of the table. `strike` begins the fault and, at its end, has it over."""

    name: str
    weight: int
    strike: Strike
    lasts: tuple[float, float] = (0.0, 0.0)  # seconds, drawn in between
    repeats: Harm = Harm.NOTHING
    unknown: Harm = Harm.NOTHING
    throughout: bool = False  # it does harm until its end, not only at its beginning
    apns: bool = False  # it changes how the simulator behaves: one of these at a time
    alone: bool = False  # nothing else is struck meanwhile


# --- processes ------------------------------------------------------------------------------------------------------


def _kill(*names: str) -> Strike:
    @contextmanager
    def strike(scene: Scene, chance: Random) -> Iterator[None]:
        name = chance.choice(names)
        scene.stack.process(name)  # waits while it starts anew
        scene.look_before()
        scene.stack.kill(name)
        yield

    return strike


def _freeze(*names: str) -> Strike:
    @contextmanager
    def strike(scene: Scene, chance: Random) -> Iterator[None]:
        process = scene.stack.process(chance.choice(names))
        scene.look_before()
        with scene.stack.frozen(process):
            yield

    return strike


@contextmanager
def _unplug(scene: Scene, chance: Random) -> Iterator[None]:
    scene.look_before()
    scene.stack.kill_everything()
    yield
    scene.stack.start_again()


# --- the broker -----------------------------------------------------------------------------------------------------


def _of_broker(do: Callable[[redis.Redis], object]) -> Strike:
    @contextmanager
    def strike(scene: Scene, chance: Random) -> Iterator[None]:
        with suppress(redis.exceptions.RedisError):  # it is away already: nothing to be done to it
            do(scene.stack.valkey)
        yield

    return strike


def _cut_clients(valkey: redis.Redis) -> None:
    valkey.client_kill_filter(_type="normal", skipme=True)
    valkey.client_kill_filter(_type="pubsub", skipme=True)


def _end(server: str, number: signal.Signals) -> Strike:
    @contextmanager
    def strike(scene: Scene, chance: Random) -> Iterator[None]:
        process = scene.stack.server(server)
        scene.look_before()
        process.send_signal(number)
        yield

    return strike


# --- the database ---------------------------------------------------------------------------------------------------


@contextmanager
def _cut_backends(scene: Scene, chance: Random) -> Iterator[None]:
    scene.look_before()
    scene.books.cut_backends()
    yield


@contextmanager
def _database_away(scene: Scene, chance: Random) -> Iterator[None]:
    process = scene.stack.server("postgres")
    scene.look_before()
    with scene.stack.nobody_revives():
        process.send_signal(signal.SIGINT)
        yield


# --- APNs -----------------------------------------------------------------------------------------------------------


def _weather(scenario: Callable[[Random], Scenario], *, renew: bool = False) -> Strike:
    """Another scenario for a while. `renew`: its mishaps are planned for new connections, so have some."""

    @contextmanager
    def strike(scene: Scene, chance: Random) -> Iterator[None]:
        control = scene.stack.simulator.control
        control.set_scenario(scenario(chance))
        if renew:
            control.goaway()
        yield
        control.set_scenario(SCENARIO)
        if renew:
            control.goaway()

    return strike


def _changed(**changes: object) -> Scenario:
    return SCENARIO.model_copy(update=changes)


def _goaway_with_losses(chance: Random) -> Scenario:
    above, unanswered = chance.randint(1, 40), chance.randint(1, 20)
    after = (above + unanswered, above + unanswered + chance.randint(100, 800))
    reason = chance.choice([None, "Shutdown"])
    return _changed(
        goaway=GoAway(after_requests=after, above=above, unanswered=unanswered, reason=reason, close_after_ms=300)
    )


def _resets(chance: Random) -> Scenario:
    shares = Shares(refused=0.02, reset=0.005, reset_after_headers=0.005)
    return _changed(seed=chance.randrange(1_000), shares=shares)


def _storm(chance: Random) -> Scenario:
    return _changed(seed=chance.randrange(1_000), storms=(Storm(status=503, share=chance.choice([0.1, 1.0])),))


def _throttling(chance: Random) -> Scenario:
    return _changed(seed=chance.randrange(1_000), shares=Shares(throttled=0.01))


@contextmanager
def _graceful_goaway(scene: Scene, chance: Random) -> Iterator[None]:
    scene.stack.simulator.control.goaway(close_after_ms=500)
    yield


@contextmanager
def _cut_connections(scene: Scene, chance: Random) -> Iterator[None]:
    scene.look_before()
    scene.stack.simulator.control.drop()
    yield


@contextmanager
def _refuse(scene: Scene, chance: Random) -> Iterator[None]:
    kind = chance.choice([OutageKind.REFUSE, OutageKind.RESET, OutageKind.SILENT, OutageKind.TLS_ALERT])
    scene.look_before()
    scene.stack.simulator.control.refuse(chance.uniform(0.5, 3.0), kind=kind, drop=True)
    yield


@contextmanager
def _stall(scene: Scene, chance: Random) -> Iterator[None]:
    scene.look_before()
    with scene.stack.frozen(scene.stack.apns):
        yield


# --- what a person does ---------------------------------------------------------------------------------------------


@contextmanager
def _pause_campaign(scene: Scene, chance: Random) -> Iterator[None]:
    campaigns = scene.stack.sender.campaigns
    with suppress(TransitionError):  # it has not started, or is over
        insisting(lambda: campaigns.pause(scene.key, reason="chaos"))
    yield
    with suppress(TransitionError):
        insisting(lambda: campaigns.resume(scene.key))


@contextmanager
def _pause_app(scene: Scene, chance: Random) -> Iterator[None]:
    insisting(lambda: scene.stack.sender.apps.pause(BUNDLE_ID, "chaos"))
    yield
    insisting(lambda: scene.stack.sender.apps.resume(BUNDLE_ID))


@contextmanager
def _slow_down(scene: Scene, chance: Random) -> Iterator[None]:
    rate = chance.choice([500.0, 2_000.0, 5_000.0])
    insisting(lambda: scene.stack.sender.apps.set_rate(BUNDLE_ID, rate))
    yield
    insisting(lambda: scene.stack.sender.apps.set_rate(BUNDLE_ID, None))


_WORKERS = tuple(f"campaign-{number}" for number in range(1, WORKERS + 1))
_ONE, _ALL, _SAID = Harm.ONE_WORKER, Harm.IN_FLIGHT, Harm.UNANSWERED
_BRIEFLY, _PAST_LEASE = (0.1, LEASE * 0.3), (LEASE * 1.5, LEASE * 2)

FAULTS: Sequence[Fault] = (
    Fault(name="kill worker", weight=4, strike=_kill(*_WORKERS), repeats=_ONE, unknown=_ONE),
    Fault(name="freeze worker", weight=2, strike=_freeze(*_WORKERS), lasts=_BRIEFLY),
    Fault(
        name="freeze worker past its lease",
        weight=3,
        strike=_freeze(*_WORKERS),
        lasts=_PAST_LEASE,
        repeats=_ONE,
        unknown=_ONE,
    ),
    Fault(name="kill beat", weight=1, strike=_kill("beat")),
    Fault(name="kill control", weight=2, strike=_kill("control")),
    Fault(name="freeze control", weight=1, strike=_freeze("control"), lasts=(1.0, LEASE * 1.5)),
    Fault(
        name="kill everything",
        weight=1,
        strike=_unplug,
        lasts=(0.0, 1.0),
        repeats=_ALL,
        unknown=_ALL,
        alone=True,
    ),
    Fault(name="cut broker's clients", weight=2, strike=_of_broker(_cut_clients)),
    Fault(name="flush broker", weight=2, strike=_of_broker(redis.Redis.flushall)),
    Fault(name="restart broker", weight=1, strike=_end("valkey-server", signal.SIGTERM)),
    Fault(name="kill broker", weight=1, strike=_end("valkey-server", signal.SIGKILL)),
    Fault(name="cut database's backends", weight=2, strike=_cut_backends, unknown=Harm.COMMITS),
    Fault(name="restart database", weight=2, strike=_end("postgres", signal.SIGINT), unknown=Harm.COMMITS),
    Fault(name="kill database", weight=2, strike=_end("postgres", signal.SIGKILL), unknown=Harm.COMMITS),
    Fault(
        name="database away",
        weight=1,
        strike=_database_away,
        lasts=(1.0, LEASE * 1.5),
        unknown=Harm.COMMITS,
        alone=True,
    ),
    Fault(name="cut connections", weight=3, strike=_cut_connections, repeats=_ALL, unknown=_ALL, apns=True),
    Fault(
        name="refuse connections",
        weight=2,
        strike=_refuse,
        lasts=(3.0, 3.5),
        repeats=_ALL,
        unknown=_ALL,
        apns=True,
    ),
    Fault(name="goaway", weight=1, strike=_graceful_goaway, apns=True),
    Fault(
        name="goaway with losses",
        weight=3,
        strike=_weather(_goaway_with_losses, renew=True),
        lasts=(0.5, 2.0),
        repeats=_SAID,
        unknown=_SAID,
        apns=True,
    ),
    Fault(
        name="reset streams",
        weight=2,
        strike=_weather(_resets),
        lasts=(0.5, 2.0),
        repeats=_SAID,
        unknown=_SAID,
        apns=True,
    ),
    Fault(name="stall briefly", weight=1, strike=_stall, lasts=(0.5, APNS_TIMEOUT * 0.4), apns=True),
    Fault(
        name="stall past the time-out",
        weight=1,
        strike=_stall,
        lasts=(APNS_TIMEOUT * 1.2, APNS_TIMEOUT * 1.5),
        repeats=_ALL,
        unknown=_ALL,
        throughout=True,
        apns=True,
    ),
    Fault(name="503", weight=2, strike=_weather(_storm), lasts=(0.5, 2.0), apns=True),
    Fault(name="429", weight=1, strike=_weather(_throttling), lasts=(0.5, 2.0), apns=True),
    Fault(name="pause campaign", weight=3, strike=_pause_campaign, lasts=(0.2, 2.0)),
    Fault(name="pause app", weight=1, strike=_pause_app, lasts=(0.2, 2.0)),
    Fault(name="change rate", weight=2, strike=_slow_down, lasts=(0.5, 3.0)),
)

BY_NAME = {fault.name: fault for fault in FAULTS}
