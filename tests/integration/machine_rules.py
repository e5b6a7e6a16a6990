"""The steps of the state machine: what APNs answers, what people command, how the work goes on, and what goes wrong.
Each takes two numbers, and makes of them what it has to choose."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import rule

from sender.engine import delivery
from sender.engine.delivery import send_batch
from sender.engine.results import Results
from sender.engine.tick import tick
from sender.errors import ConflictError, SenderError, TransitionError
from sender.model import ACCEPTED, Accepted, Answer, NotProcessed, Rejected, Unknown
from sender.policy.outcomes import FALLBACKS, RULES
from sender.store import lifecycle
from sender.store.batches import Claim
from tests.integration.engine import BUNDLE, token_of
from tests.integration.machine import DEVICES, Died, Stage, between

#: Every row of the outcome table, an unknown reason of every status, and what is no answer.
ANSWERS: tuple[Answer, ...] = (
    *(Rejected(status=each.statuses[0], reason=each.reason) for each in RULES),
    *(Rejected(status=status, reason="Unheard") for status in FALLBACKS),
    Unknown(cause="the connection was lost"),
    NotProcessed(cause="REFUSED_STREAM"),
    ACCEPTED,
)
#: Those after which the same device is tried again, and the good one: they make the longest stories.
PASSING: tuple[Answer, ...] = tuple(
    answer
    for answer in ANSWERS
    if isinstance(answer, Unknown | NotProcessed | Accepted) or answer.status in {429, 500, 503}
)


class World(Stage):
    """What others do: APNs, people, applications."""

    def apns_answers_one(self, at: int, which: int) -> None:
        self.answers[token_of(1 + at % DEVICES)] = ANSWERS[which % len(ANSWERS)]

    def apns_answers_some(self, at: int, which: int) -> None:
        for device in range(1, 2 + at % DEVICES):
            self.answers[token_of(device)] = PASSING[which % len(PASSING)]

    def apns_accepts(self, at: int, which: int) -> None:
        self.answers.clear()

    def people_command(self, at: int, which: int) -> None:
        key, verb = self.key(at), ("pause", "resume", "cancel", "enqueue", "send", "resume")[which % 6]
        with suppress(TransitionError, ConflictError):
            if verb == "enqueue":
                self.engine.enqueue(key, **self.options[key])
            else:
                getattr(self.engine.sender.campaigns, verb)(key)

    def people_command_the_app(self, at: int, which: int) -> None:
        getattr(self.engine.sender.apps, ("resume", "pause")[which % 2])(BUNDLE)
        self.engine.sender.apps.set_rate(BUNDLE, (None, 5_000.0, 50_000.0)[at % 3])

    def a_device_is_heard_from(self, at: int, which: int) -> None:
        devices, token = self.engine.sender.devices, token_of(1 + at % DEVICES)
        with suppress(SenderError):
            match which % 6:
                case 0:
                    devices.unregister(BUNDLE, token)
                case 1:
                    devices.opt_out(BUNDLE, token=token)
                case 2:
                    devices.opt_in(BUNDLE, token=token)
                case user:
                    devices.register(BUNDLE, token, environment="production", user=(None, "u-1", "u-2")[user - 3])


class Flow(Stage):
    """How the work goes on, and how it is done twice at once."""

    def tick_and_cut(self, at: int, which: int) -> None:
        self.engine.start()

    def two_ticks_at_once(self, at: int, which: int) -> None:
        with between(lifecycle, "audience_of", lambda *_: tick(self.engine.database)):
            tick(self.engine.database)
        self.pass_time()

    def two_fan_outs_at_once(self, at: int, which: int) -> None:
        def publish(*args: Any) -> None:
            self.cut(at, self.engine.publish)
            self.engine.publish(*args)

        self.cut(at, publish)

    def work_all(self, at: int, which: int) -> None:
        self.engine.work()

    def work_one(self, at: int, which: int) -> None:
        send_batch(self.engine.runtime, self.take(at))

    def sweep(self, at: int, which: int) -> None:
        self.engine.sweep()

    def two_sweeps_at_once(self, at: int, which: int) -> None:
        first, second = self.sweepers

        def waiting() -> int:
            second.run(self.engine.database, self.engine.settings, self.engine.publish, lambda: 1)
            return 0

        first.run(self.engine.database, self.engine.settings, self.engine.publish, waiting)

    def time_passes(self, at: int, which: int) -> None:
        self.pass_time()


class Misfortunes(Stage):
    """What goes wrong in the queue and in the workers."""

    def the_broker_is_lost_while_publishing(self, at: int, which: int) -> None:
        def publish(*_: Any) -> None:
            raise ConnectionError

        with suppress(ConnectionError):
            self.cut(at, publish)

    def a_message_is_lost(self, at: int, which: int) -> None:
        self.take(at)

    def a_message_comes_twice(self, at: int, which: int) -> None:
        batch = self.take(at)
        self.engine.queue += [batch, batch]

    def a_second_copy_runs_meanwhile(self, at: int, which: int) -> None:
        batch = self.take(at)
        with between(delivery, "record_surely", lambda *_: send_batch(self.engine.runtime, batch)):
            send_batch(self.engine.runtime, batch)

    def a_campaign_is_cancelled_before_a_worker_records(self, at: int, which: int) -> None:
        batch = self.take(at)

        def cancel(*_: object) -> None:
            with suppress(TransitionError):
                self.engine.sender.campaigns.cancel(self.key(which))
            self.engine.sweep()

        with between(delivery, "record_surely", cancel):
            send_batch(self.engine.runtime, batch)

    def a_worker_dies_before_it_issues(self, at: int, which: int) -> None:
        batch = self.take(at)
        with mock.patch.object(delivery, "issue", side_effect=Died), suppress(Died):
            send_batch(self.engine.runtime, batch)

    def a_worker_dies_before_it_records(self, at: int, which: int) -> None:
        batch = self.take(at)

        def die(_: Any, claim: Claim, results: Results) -> None:
            self.late.append((claim, results))
            raise Died

        with self.repeating(), mock.patch.object(delivery, "record_surely", side_effect=die), suppress(Died):
            send_batch(self.engine.runtime, batch)

    def a_worker_fails_with_an_error_of_our_own(self, at: int, which: int) -> None:
        batch = self.take(at)
        with mock.patch.object(delivery, "issue", side_effect=RuntimeError("a bug")), suppress(RuntimeError):
            send_batch(self.engine.runtime, batch)

    def a_worker_stalls_past_its_lease(self, at: int, which: int) -> None:
        """Another worker has the batch, and other answers, before this one records; or the other one records after this
        one has come back (`overtakes`)."""
        batch, overtakes = self.take(at), which % 2 == 0

        def another(_: Any, claim: Claim, results: Results) -> None:
            self.reclaim()
            self.engine.bring_forward()
            self.apns_answers_some(DEVICES - 1, which)
            comes_back = (lambda *_: self.record(claim, results)) if overtakes else (lambda *_: None)
            with between(delivery, "record_surely", comes_back):
                send_batch(self.engine.runtime, batch)
            if overtakes:
                raise Died  # it has recorded

        with self.repeating(), between(delivery, "record_surely", another), suppress(Died):
            send_batch(self.engine.runtime, batch)

    def a_worker_comes_back_from_the_dead(self, at: int, which: int) -> None:
        """It records what it had; perhaps after it has lost its claim, and perhaps not for the last time."""
        reclaimed, again = which % 3 > 0, which % 2 == 0
        if reclaimed:
            self.reclaim()
        if self.late:
            self.record(*(self.late[at % len(self.late)] if again else self.late.pop(at % len(self.late))))

    def the_dead_lose_their_claims(self, at: int, which: int) -> None:
        self.reclaim()


#: What is drawn how often.
STEPS: Mapping[str, int] = {
    "apns_answers_one": 3,
    "apns_answers_some": 2,
    "apns_accepts": 1,
    "people_command": 2,
    "people_command_the_app": 1,
    "a_device_is_heard_from": 2,
    "tick_and_cut": 1,
    "two_ticks_at_once": 1,
    "two_fan_outs_at_once": 1,
    "work_one": 5,
    "work_all": 2,
    "sweep": 1,
    "two_sweeps_at_once": 1,
    "time_passes": 2,
    "the_broker_is_lost_while_publishing": 1,
    "a_message_is_lost": 1,
    "a_message_comes_twice": 1,
    "a_second_copy_runs_meanwhile": 1,
    "a_campaign_is_cancelled_before_a_worker_records": 1,
    "a_worker_dies_before_it_issues": 1,
    "a_worker_dies_before_it_records": 3,
    "a_worker_fails_with_an_error_of_our_own": 1,
    "a_worker_stalls_past_its_lease": 3,
    "a_worker_comes_back_from_the_dead": 4,
    "the_dead_lose_their_claims": 1,
}


class Machine(World, Flow, Misfortunes):
    """All of them, in any order. One rule for all: Hypothesis would leave half of several out of every story."""

    @rule(
        do=st.sampled_from([step for step, weight in STEPS.items() for _ in range(weight)]),
        at=st.integers(0, 40),
        which=st.integers(0, 40),
    )
    def step(self, do: str, at: int, which: int) -> None:
        getattr(self, do)(at, which)
