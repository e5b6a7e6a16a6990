"""End to end: campaigns through PostgreSQL, Valkey and Celery, on the real `sender up`."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import psutil

from sender.audience import Segment
from sender.simulator import Scenario, Shares, SimulatorProcess
from tests.bench.places import Place
from tests.bench.results import Growth, Results
from tests.bench.senders import NODE, STOCK, Send
from tests.bench.servers import Server, server_of
from tests.bench.stack import MESSAGE_WITHOUT_OURS, CampaignStuckError, Stack, add_app, run_stack

WARM, SMALL, MEDIUM, LARGE, MOST, FAULTS, SINGLE = (
    f"com.example.{name}" for name in ("warm", "small", "medium", "large", "most", "faults", "single")
)

WORKERS = (1, 2)
ANSWERS = ((0.0, 0.0), (0.05, 0.0), (0.3, 0.0), (0.0, 60.0))  # share of dead tokens, milliseconds
WINDOW_BEGINS = 100_000  # the push from which on a worker's memory must be flat

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int
    seconds: float  # that each client sends alone
    rejections: int
    small: int  # devices of a campaign with a Celery message each
    medium: int
    large: int
    most: int  # 0: left out
    singles: int


FULL = Size(
    rounds=3, seconds=3.0, rejections=100_000, small=1_000, medium=10_000, large=100_000, most=1_000_000, singles=100
)
QUICK = Size(rounds=1, seconds=1.5, rejections=20_000, small=300, medium=3_000, large=20_000, most=0, singles=15)


@dataclass(slots=True, kw_only=True)
class Bench:
    """Campaigns to measure, with everything that they need."""

    place: Place
    size: Size
    production: Server  # what production tokens are sent to
    simulator: SimulatorProcess  # what sandbox tokens are sent to
    senders: Mapping[str, Send]
    results: Results
    say: Say

    def by_batch_size(self) -> None:
        """Batch sizes and numbers of workers, interleaved."""
        size = self.size
        plan = ((1, SMALL, size.small), (10, MEDIUM, size.medium), *((n, LARGE, size.large) for n in (100, 500, 1000)))
        for round_ in range(size.rounds):
            self._others_alone()
            for workers in WORKERS:
                with self._stack(workers) as stack:
                    for batch_size, app, devices in plan:
                        run = stack.send(app, devices, batch_size=batch_size)
                        self.results.batches.setdefault((workers, batch_size), []).append(run)
                        self.say(f"round {round_ + 1}: {workers} workers, batches of {batch_size}: {run.rate:,.0f}/s")

    def _others_alone(self) -> None:
        """What the other clients merely send at this time, to compare the round with."""
        for name in (STOCK, NODE):
            send = self.senders.get(name)
            if send is not None:
                sample = send(self.place, self.production, self.size.seconds / 2).sample
                self.results.beside.setdefault((self.production.name, name), []).append(sample)
                self.say(f"{name} alone: {sample.rate:,.0f}/s")

    def by_answers(self) -> None:
        """Dead tokens and latency, interleaved; the simulator stands for APNs."""
        with self._stack(WORKERS[-1]) as stack:
            for round_ in range(self.size.rounds):
                for dead, latency in ANSWERS:
                    shares = Shares(unregistered=dead)
                    self.simulator.control.set_scenario(Scenario(seed=7, shares=shares, latency_ms=latency))
                    self.simulator.control.reset()
                    run = stack.send(FAULTS, self.size.large)
                    self.results.answers.setdefault((dead, latency), []).append(run)
                    self.say(f"round {round_ + 1}: {dead:.0%} dead, {latency:g} ms: {run.rate:,.0f}/s")
                    if dead:
                        stack.revive_devices()
            self.simulator.control.set_scenario(Scenario())

    def by_devices(self) -> None:
        """Small and large campaigns with one worker, whose memory is watched in the largest one."""
        size = self.size
        with self._stack(1) as stack:
            if size.most:
                with _MemorySamples(stack) as samples:
                    run = stack.send(MOST, size.most)
                self.results.scale.setdefault(size.most, []).append(run)
                self.results.growth = samples.growth(size.most)
                self.say(f"{size.most:,} devices: {run.rate:,.0f}/s")
            for round_ in range(size.rounds):
                for app, devices in ((MEDIUM, size.medium), (LARGE, size.large)):
                    run = stack.send(app, devices)
                    self.results.scale.setdefault(devices, []).append(run)
                    self.say(f"round {round_ + 1}: {devices:,} devices: {run.rate:,.0f}/s")

    def single_pushes(self) -> None:
        """The time from before `enqueue` to the arrival at the simulator, of campaigns to one user, one by one."""
        chance = random.Random(5)
        with self._stack(WORKERS[-1]) as stack:
            token = f"{chance.getrandbits(256):064x}"
            add_app(stack, SINGLE, devices=0, environment="sandbox")
            stack.sender.devices.register(SINGLE, token, user="u-1", environment="sandbox")
            self._send_single(stack, token, 0)  # the first one opens the connection
            for number in range(1, self.size.singles + 1):
                time.sleep(chance.random() * 0.2)  # not in step with the ticks
                self.results.singles.append(self._send_single(stack, token, number))

    def _send_single(self, stack: Stack, token: str, number: int) -> float:
        self.simulator.control.reset()
        started = time.time()
        stack.sender.campaigns.enqueue(
            SINGLE, key=f"single-{number}", payload=MESSAGE_WITHOUT_OURS, audience=Segment.users("u-1")
        )
        while time.time() - started < 30:
            for received in self.simulator.control.received(token):
                return received.at - started
            time.sleep(0.01)
        raise CampaignStuckError("a single push did not arrive within 30 s")

    def _stack(self, workers: int) -> _Running:
        return _Running(self, workers)


class _Running:
    """A stack with its devices and one campaign behind it, so that its connections are open."""

    def __init__(self, bench: Bench, workers: int) -> None:
        self._bench = bench
        self._context = run_stack(
            bench.place, workers=workers, production=bench.production, sandbox=server_of(bench.simulator)
        )

    def __enter__(self) -> Stack:
        size = self._bench.size
        self._stack = self._context.__enter__()
        try:
            for app, devices in ((WARM, 5_000), (SMALL, size.small), (MEDIUM, size.medium), (LARGE, size.large)):
                add_app(self._stack, app, devices=devices, environment="production")
            add_app(self._stack, FAULTS, devices=size.large, environment="sandbox")
            if size.most:
                add_app(self._stack, MOST, devices=size.most, environment="production")
            self._stack.send(WARM, 5_000)
        except BaseException as error:
            self._context.__exit__(type(error), error, error.__traceback__)
            raise
        return self._stack

    def __exit__(self, *error: object) -> None:
        for kind, peak in self._stack.peaks.items():
            self._bench.results.peaks[kind] = max(self._bench.results.peaks.get(kind, 0), peak)
        self._context.__exit__(*error)  # type: ignore[arg-type]


class _MemorySamples:
    """A worker's memory against the pushes that it has sent, from a thread of its own."""

    INTERVAL = 0.25  # seconds

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._process: psutil.Process = stack.worker_processes()[0]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self._before = stack.sent_so_far()
        self.samples: list[tuple[int, int]] = []

    def __enter__(self) -> _MemorySamples:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def growth(self, last: int) -> Growth | None:
        """What happened from the 100,000th push on; None when there was too little to see."""
        window = [memory for sent, memory in self.samples if sent >= WINDOW_BEGINS]
        if len(window) < 3:
            return None
        return Growth(first_push=WINDOW_BEGINS, last_push=last, begin=window[0], end=window[-1], most=max(window))

    def _watch(self) -> None:
        while not self._over.wait(self.INTERVAL):
            sent = self._stack.sent_so_far() - self._before
            self.samples.append((sent, int(self._process.memory_info().rss)))
