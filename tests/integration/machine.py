"""The engine as a state machine for Hypothesis: commands, results, crashes and the passing of time in any order, on a
real database with a scripted APNs; after every step what is promised is looked up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sender.engine import delivery
from sender.engine.delivery import send_batch
from sender.engine.fanout import cut_campaign
from sender.engine.recording import record
from sender.engine.results import Results
from sender.engine.sweep import Sweeper
from sender.engine.tick import tick
from sender.errors import ConflictError, SenderError, TransitionError
from sender.model import ACCEPTED, Accepted, Answer, NotProcessed, Push, Rejected, Unknown
from sender.policy.outcomes import FALLBACKS, RULES
from sender.store import batches, lifecycle
from sender.store.batches import Claim
from tests.integration.engine import BUNDLE, Engine, token_of
from tests.integration.promises import Books, check_moves, check_promises, read_books

DEVICES = 6
TOKENS = st.integers(1, DEVICES)
PLACES = st.integers(0, 20)  # in the queue
NO_BATCH = 0  # a message that names none: what is taken from an empty queue
KEYS = ("first", "second")

#: Every row of the outcome table, an unknown reason of every status, and what is no answer.
ANSWERS: tuple[Answer, ...] = (
    *(Rejected(status=each.statuses[0], reason=each.reason) for each in RULES),
    *(Rejected(status=status, reason="Unheard") for status in FALLBACKS),
    Unknown(cause="the connection was lost"),
    NotProcessed(cause="REFUSED_STREAM"),
    ACCEPTED,
)
#: Those after which the same device is tried again: they make the longest stories.
PASSING = tuple(
    answer
    for answer in ANSWERS
    if isinstance(answer, Unknown | NotProcessed | Accepted) or answer.status in {429, 500, 503}
)


class Died(BaseException):
    """A worker's process ends here."""


class Machine(RuleBasedStateMachine):
    """Two campaigns, a handful of devices, one worker process whose threads die and stall, and a queue."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        super().__init__()
        self.engine = make()
        self.answers: dict[str, Answer] = {}
        self.late: list[tuple[Claim, Results]] = []  # of workers that died before they could record, or stalled
        self.unrecorded: Counter[tuple[int, str]] = Counter()  # pushes that a crash or a lost answer may have repeated
        self.pushes: list[tuple[int, str, Answer]] = []  # campaign, token, answer
        self.engine.answer(self._answer)
        self.sweepers = (self.engine.sweeper, Sweeper())
        self.books: Books | None = None
        self.seen = 0

    def teardown(self) -> None:
        try:
            self._come_to_an_end()
        finally:
            self.engine.runtime.close()

    # --- APNs -------------------------------------------------------------------------------------------------------

    def _answer(self, push: Push) -> Answer:
        answer = self.answers.get(push.token, ACCEPTED)
        self.pushes.append((self.campaigns[push.headers.collapse_id], push.token, answer))
        return answer

    @rule(device=TOKENS, answer=st.sampled_from(ANSWERS))
    def apns_answers(self, device: int, answer: Answer) -> None:
        self.answers[token_of(device)] = answer

    @rule(answer=st.sampled_from(PASSING))
    def apns_answers_all(self, answer: Answer) -> None:
        self.answers = dict.fromkeys(map(token_of, range(1, DEVICES + 1)), answer)

    # --- commands ---------------------------------------------------------------------------------------------------

    @initialize(
        deliveries=st.tuples(*[st.sampled_from(["at_least_once", "at_most_once"])] * 2),
        sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)),
        drafts=st.tuples(st.booleans(), st.booleans()),
    )
    def begin(self, deliveries: tuple[str, str], sizes: tuple[int, int], drafts: tuple[bool, bool]) -> None:
        self.engine.add_app()
        self.engine.add_devices(DEVICES)
        self.campaigns: dict[str | None, int] = {}
        self.options = {
            key: {"delivery": way, "batch_size": size} for key, way, size in zip(KEYS, deliveries, sizes, strict=True)
        }
        for key, draft in zip(KEYS, drafts, strict=True):
            row = self.engine.enqueue(key, draft=draft, **self.options[key]).row
            self.campaigns[row.collapse_id] = row.id
        self.deliveries = {self.campaigns[key]: way for key, way in zip(self.campaigns, deliveries, strict=True)}
        self._look()

    @rule(
        key=st.sampled_from(KEYS), command=st.sampled_from(["send", "pause", "resume", "resume", "cancel", "enqueue"])
    )
    def command(self, key: str, command: str) -> None:
        with suppress(TransitionError, ConflictError):
            if command == "enqueue":
                self.engine.enqueue(key, **self.options[key])
            else:
                getattr(self.engine.sender.campaigns, command)(key)

    @rule(command=st.sampled_from(["pause", "resume", "resume"]), rate=st.sampled_from([None, 5_000.0, 50_000.0]))
    def command_app(self, command: str, rate: float | None) -> None:
        getattr(self.engine.sender.apps, command)(BUNDLE)
        self.engine.sender.apps.set_rate(BUNDLE, rate)

    @rule(
        device=TOKENS,
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

    # --- the flow ---------------------------------------------------------------------------------------------------

    @rule()
    def tick_and_cut(self) -> None:
        self.engine.start()

    @rule()
    def two_ticks_at_once(self) -> None:
        with between(lifecycle, "audience_of", lambda *_: tick(self.engine.database)):
            for campaign_id, _ in tick(self.engine.database):
                self._cut(campaign_id, self.engine.publish)

    @rule(key=st.sampled_from(KEYS))
    def two_fan_outs_at_once(self, key: str) -> None:
        campaign_id = self._id(key)

        def publish(key: str, ids: Any, urgent: bool) -> None:
            self._cut(campaign_id, self.engine.publish)
            self.engine.publish(key, ids, urgent)

        self._cut(campaign_id, publish)

    @rule(key=st.sampled_from(KEYS))
    def fan_out_loses_the_broker(self, key: str) -> None:
        def publish(*_: Any) -> None:
            raise ConnectionError

        with suppress(ConnectionError):
            self._cut(self._id(key), publish)

    @rule(at=PLACES)
    def work_one(self, at: int) -> None:
        send_batch(self.engine.runtime, self._take(at))

    @rule()
    def work_all(self) -> None:
        self.engine.work()

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
        """What waits is due, what was published long ago is taken for lost, nobody has a campaign's cut reserved."""
        self.engine.bring_forward()
        with self.engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.batches SET published_at = NULL WHERE state = 'open'")
            transaction.execute("UPDATE {s}.campaigns SET fanout_until = NULL")

    # --- the queue and the worker misbehave -------------------------------------------------------------------------

    @rule(at=PLACES)
    def lose_a_message(self, at: int) -> None:
        self._take(at)

    @rule(at=PLACES)
    def deliver_a_message_twice(self, at: int) -> None:
        batch = self._take(at)
        self.engine.queue += [batch, batch]

    @rule(at=PLACES)
    def a_second_copy_runs_meanwhile(self, at: int) -> None:
        batch = self._take(at)
        with between(delivery, "record_surely", lambda *_: send_batch(self.engine.runtime, batch)):
            send_batch(self.engine.runtime, batch)

    @rule(at=PLACES)
    def die_before_issuing(self, at: int) -> None:
        with mock.patch.object(delivery, "issue", side_effect=Died), suppress(Died):
            send_batch(self.engine.runtime, self._take(at))

    @rule(at=PLACES)
    def die_before_recording(self, at: int) -> None:
        def die(_: Any, claim: Claim, results: Results) -> None:
            self.late.append((claim, results))
            raise Died

        with self._repeating(), mock.patch.object(delivery, "record_surely", side_effect=die), suppress(Died):
            send_batch(self.engine.runtime, self._take(at))

    @rule(at=PLACES)
    def fail_with_an_error_of_our_own(self, at: int) -> None:
        with mock.patch.object(delivery, "issue", side_effect=RuntimeError("a bug")), suppress(RuntimeError):
            send_batch(self.engine.runtime, self._take(at))

    @rule(at=PLACES, answer=st.sampled_from(PASSING), overtakes=st.booleans())
    def stall_past_the_lease(self, at: int, answer: Answer, overtakes: bool) -> None:
        """Another worker has the batch, and other answers, before this one records; or the other one records after this
        one has come back (`overtakes`)."""
        batch = self._take(at)

        def another(_: Any, claim: Claim, results: Results) -> None:
            self._reclaim()
            self.engine.bring_forward()
            self.apns_answers_all(answer)
            comes_back = (lambda *_: self._record(claim, results)) if overtakes else (lambda *_: None)
            with between(delivery, "record_surely", comes_back):
                send_batch(self.engine.runtime, batch)
            if overtakes:
                raise Died  # it has recorded

        with self._repeating(), between(delivery, "record_surely", another), suppress(Died):
            send_batch(self.engine.runtime, batch)

    @rule(at=PLACES, keep=st.booleans())
    def record_late(self, at: int, keep: bool) -> None:
        """A worker that was taken for dead comes back with its answers; perhaps not for the last time."""
        if not self.late:
            return
        claim, results = self.late[at % len(self.late)] if keep else self.late.pop(at % len(self.late))
        self._record(claim, results)

    @rule()
    def reclaim_what_the_dead_held(self) -> None:
        self._reclaim()

    # --- what is promised -------------------------------------------------------------------------------------------

    @invariant()
    def promises_are_kept(self) -> None:
        if self.books is None:
            return
        before, now = self.books, self._look()
        if now != before:
            check_moves(before, now)
            check_promises(now)
            for key in KEYS:
                self.engine.report(key)
        for campaign, token, answer in self.pushes[self.seen :]:
            self._check_push(before, campaign, token, answer)
        self.seen = len(self.pushes)

    def _check_push(self, before: Books, campaign: int, token: str, answer: Answer) -> None:
        assert before.campaigns[campaign] == "running", f"pushed while it was {before.campaigns[campaign]}"
        assert before.apps == {BUNDLE: "active"}, "pushed while the app was paused"
        assert (campaign, token) not in before.finals, f"pushed after it was {before.finals[campaign, token]}"
        made = [each for to, device, each in self.pushes if (to, device) == (campaign, token)]
        perhaps = sum(isinstance(each, Accepted | Unknown) for each in made)
        if self.deliveries[campaign] == "at_most_once":
            assert perhaps <= 1, f"pushed again after it may have arrived: {made}"
            assert perhaps == 0 or isinstance(made[-1], Accepted | Unknown), "pushed again after it may have arrived"
        accepted = sum(isinstance(each, Accepted) for each in made)
        assert accepted <= 1 + self.unrecorded[campaign, token], f"accepted {accepted} times"

    def _come_to_an_end(self) -> None:
        """APNs accepts, everything is resumed, and what is under way comes to its end."""
        if self.books is None:
            return
        self.answers.clear()
        self.promises_are_kept()
        for _ in range(60):
            self.engine.sender.apps.resume(BUNDLE)
            for key in KEYS:
                self.command(key, "resume")
            self._reclaim()
            self.time_passes()
            self.engine.start()
            self._look()
            self.engine.work()
            self.promises_are_kept()
            self.engine.sweep()
            if not self.engine.rows("SELECT FROM {s}.campaigns WHERE finished_at IS NULL AND state <> 'draft'"):
                break
        now = self._look()
        assert set(now.campaigns.values()) <= {"completed", "cancelled", "failed", "draft"}, now.campaigns
        assert (now.open, now.retries, now.intents, now.reservations) == ({}, {}, set(), 0)
        for campaign, cut in now.cut.items():
            assert {token for to, token in now.finals if to == campaign} == cut

    # --- hands ------------------------------------------------------------------------------------------------------

    def _look(self) -> Books:
        self.books = read_books(self.engine)
        return self.books

    def _id(self, key: str) -> int:
        return int(self.engine.sender.campaigns.load(key).id)

    def _take(self, at: int) -> int:
        """A message out of the queue; when it is empty, time passes first."""
        if not self.engine.queue:
            self.engine.start()
        if not self.engine.queue:
            self.time_passes()
            self.engine.sweep()
        self.promises_are_kept()
        return self.engine.queue.pop(at % len(self.engine.queue)) if self.engine.queue else NO_BATCH

    def _cut(self, campaign_id: int, publish: Any) -> None:
        turns = iter((False, True))  # one look
        cut_campaign(self.engine.database, campaign_id, publish, stopped=lambda: next(turns, True))

    def _record(self, claim: Claim, results: Results) -> None:
        with self.engine.database.transaction() as transaction:
            record(transaction, claim, results, scale=1.0)

    def _reclaim(self) -> None:
        with self.engine.database.transaction() as transaction:
            for batch, owner, beats in batches.claimed(transaction):
                assert batches.reclaim(transaction, batch, owner, beats, lease=0.0)

    @contextmanager
    def _repeating(self) -> Iterator[None]:
        """What is pushed meanwhile may be pushed again: its answer is not recorded in time."""
        since = len(self.pushes)
        yield
        for campaign, token, _ in self.pushes[since:]:
            self.unrecorded[campaign, token] += 1


@contextmanager
def between(module: Any, name: str, happens: Callable[..., object]) -> Iterator[None]:
    """Once, right before a function of a module is called, something else happens, which gets its arguments."""
    real = getattr(module, name)
    left = [happens]

    def call(*args: Any, **options: Any) -> Any:
        if left:
            left.pop()(*args)
        return real(*args, **options)

    with mock.patch.object(module, name, side_effect=call):
        yield
