"""The steps of the state machine: what APNs answers, what people command, how the work goes on, and what goes wrong."""

from __future__ import annotations

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
ANY = st.sampled_from(PASSING) | st.sampled_from(ANSWERS)
PLACES = st.integers(0, 20)  # in the queue, among the campaigns, among the late


class World(Stage):
    """What others do: APNs, people, applications."""

    @rule(device=st.integers(1, DEVICES), answer=ANY)
    def apns_answers(self, device: int, answer: Answer) -> None:
        self.answers[token_of(device)] = answer

    @rule(answer=st.sampled_from(PASSING))
    def apns_answers_all(self, answer: Answer) -> None:
        self.answers = dict.fromkeys(map(token_of, range(1, DEVICES + 1)), answer)

    @rule(at=PLACES, verb=st.sampled_from(["send", "pause", "resume", "cancel", "enqueue"]))
    def command(self, at: int, verb: str) -> None:
        key = self.key(at)
        with suppress(TransitionError, ConflictError):
            if verb == "enqueue":
                self.engine.enqueue(key, **self.options[key])
            else:
                getattr(self.engine.sender.campaigns, verb)(key)

    @rule(verb=st.sampled_from(["pause", "resume"]), rate=st.sampled_from([None, 5_000.0, 50_000.0]))
    def command_app(self, verb: str, rate: float | None) -> None:
        getattr(self.engine.sender.apps, verb)(BUNDLE)
        self.engine.sender.apps.set_rate(BUNDLE, rate)

    @rule(
        device=st.integers(1, DEVICES),
        verb=st.sampled_from(["register", "unregister", "opt_out", "opt_in"]),
        user=st.sampled_from([None, "u-1", "u-2"]),
    )
    def hear_from_a_device(self, device: int, verb: str, user: str | None) -> None:
        devices, token = self.engine.sender.devices, token_of(device)
        with suppress(SenderError):
            match verb:
                case "register":
                    devices.register(BUNDLE, token, environment="production", user=user)
                case "unregister":
                    devices.unregister(BUNDLE, token)
                case _:
                    getattr(devices, verb)(BUNDLE, token=token)


class Flow(Stage):
    """How the work goes on, and how it is done twice at once."""

    @rule()
    def tick_and_cut(self) -> None:
        self.engine.start()

    @rule()
    def two_ticks_at_once(self) -> None:
        with between(lifecycle, "audience_of", lambda *_: tick(self.engine.database)):
            tick(self.engine.database)
        self.pass_time()

    @rule(at=PLACES)
    def two_fan_outs_at_once(self, at: int) -> None:
        def publish(*args: Any) -> None:
            self.cut(at, self.engine.publish)
            self.engine.publish(*args)

        self.cut(at, publish)

    @rule()
    def work_all(self) -> None:
        self.engine.work()

    @rule(at=PLACES)
    def work_one(self, at: int) -> None:
        send_batch(self.engine.runtime, self.take(at))

    @rule()
    def sweep(self) -> None:
        self.engine.sweep()

    @rule()
    def two_sweeps_at_once(self) -> None:
        first, second = self.sweepers

        def waiting() -> int:
            second.run(self.engine.database, self.engine.settings, self.engine.publish, lambda: 1)
            return 0

        first.run(self.engine.database, self.engine.settings, self.engine.publish, waiting)

    @rule()
    def time_passes(self) -> None:
        self.pass_time()


class Misfortunes(Stage):
    """What goes wrong in the queue and in the workers."""

    @rule(at=PLACES)
    def the_broker_is_lost_while_publishing(self, at: int) -> None:
        def publish(*_: Any) -> None:
            raise ConnectionError

        with suppress(ConnectionError):
            self.cut(at, publish)

    @rule(at=PLACES)
    def a_message_is_lost(self, at: int) -> None:
        self.take(at)

    @rule(at=PLACES)
    def a_message_comes_twice(self, at: int) -> None:
        batch = self.take(at)
        self.engine.queue += [batch, batch]

    @rule(at=PLACES)
    def a_second_copy_runs_meanwhile(self, at: int) -> None:
        batch = self.take(at)
        with between(delivery, "record_surely", lambda *_: send_batch(self.engine.runtime, batch)):
            send_batch(self.engine.runtime, batch)

    @rule(at=PLACES)
    def a_worker_dies_before_it_issues(self, at: int) -> None:
        batch = self.take(at)
        with mock.patch.object(delivery, "issue", side_effect=Died), suppress(Died):
            send_batch(self.engine.runtime, batch)

    @rule(at=PLACES)
    def a_worker_dies_before_it_records(self, at: int) -> None:
        batch = self.take(at)

        def die(_: Any, claim: Claim, results: Results) -> None:
            self.late.append((claim, results))
            raise Died

        with self.repeating(), mock.patch.object(delivery, "record_surely", side_effect=die), suppress(Died):
            send_batch(self.engine.runtime, batch)

    @rule(at=PLACES)
    def a_worker_fails_with_an_error_of_our_own(self, at: int) -> None:
        batch = self.take(at)
        with mock.patch.object(delivery, "issue", side_effect=RuntimeError("a bug")), suppress(RuntimeError):
            send_batch(self.engine.runtime, batch)

    @rule(at=PLACES, answer=st.sampled_from(PASSING), overtakes=st.booleans())
    def a_worker_stalls_past_its_lease(self, at: int, answer: Answer, overtakes: bool) -> None:
        """Another worker has the batch, and other answers, before this one records; or the other one records after this
        one has come back (`overtakes`)."""
        batch = self.take(at)

        def another(_: Any, claim: Claim, results: Results) -> None:
            self.reclaim()
            self.engine.bring_forward()
            self.apns_answers_all(answer)
            comes_back = (lambda *_: self.record(claim, results)) if overtakes else (lambda *_: None)
            with between(delivery, "record_surely", comes_back):
                send_batch(self.engine.runtime, batch)
            if overtakes:
                raise Died  # it has recorded

        with self.repeating(), between(delivery, "record_surely", another), suppress(Died):
            send_batch(self.engine.runtime, batch)

    @rule(at=PLACES, again=st.booleans(), reclaimed=st.booleans())
    def a_worker_comes_back_from_the_dead(self, at: int, again: bool, reclaimed: bool) -> None:
        """It records what it had; perhaps not for the last time (`again`)."""
        if reclaimed:
            self.reclaim()
        if self.late:
            self.record(*(self.late[at % len(self.late)] if again else self.late.pop(at % len(self.late))))

    @rule()
    def the_dead_lose_their_claims(self) -> None:
        self.reclaim()


class Machine(World, Flow, Misfortunes):
    """All of them, in any order."""
