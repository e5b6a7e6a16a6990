"""The engine as a state machine for Hypothesis: some campaigns, a handful of devices, a worker whose threads die and
stall, a queue that is a list, and a scripted APNs, on a real database. After every step what is promised is looked up;
at the end everything that is under way must come to its end. The steps are in `machine_rules`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from sender.engine.fanout import cut_campaign
from sender.engine.recording import record
from sender.engine.results import Results
from sender.engine.sweep import Sweeper
from sender.errors import TransitionError
from sender.model import ACCEPTED, Accepted, Answer, Push, Unknown
from sender.store import batches
from sender.store.batches import Claim
from tests.integration.engine import BUNDLE, Engine
from tests.integration.promises import Books, check_moves, check_promises, read_books

DEVICES = 6
NO_BATCH = 0  # a message that names none: what is taken from an empty queue
MOST_CAMPAIGNS = 6
DELIVERIES = st.sampled_from(["at_least_once", "at_most_once"])


class Died(BaseException):
    """A worker's process ends here."""


class Stage(RuleBasedStateMachine):
    """What the steps act on, and what is promised of it."""

    def __init__(self, make: Callable[[], Engine]) -> None:
        super().__init__()
        self.engine = make()
        self.engine.answer(self._answer)
        self.sweepers = (self.engine.sweeper, Sweeper())
        self.answers: dict[str, Answer] = {}
        self.late: list[tuple[Claim, Results]] = []  # of workers that died before they could record
        self.keys: list[str] = []
        self.options: dict[str, dict[str, Any]] = {}
        self.campaigns: dict[str | None, int] = {}  # by what their pushes carry
        self.pushes: list[tuple[int, str, Answer]] = []  # campaign, token, answer
        self.unrecorded: Counter[tuple[int, str]] = Counter()  # pushes whose answer was not recorded in time
        self.checked = 0  # pushes
        self.books: Books | None = None

    @initialize(ways=st.tuples(DELIVERIES, DELIVERIES), sizes=st.tuples(st.integers(1, 4), st.integers(1, 4)))
    def begin(self, ways: tuple[str, str], sizes: tuple[int, int]) -> None:
        self.engine.add_app()
        self.engine.add_devices(DEVICES)
        self.offers = [{"delivery": way, "batch_size": size} for way, size in zip(ways, sizes, strict=True)]
        self._enqueue(draft=False)
        self._enqueue(draft=True)
        self.look()

    def teardown(self) -> None:
        try:
            if self.books is not None:
                self._come_to_an_end()
        finally:
            self.engine.runtime.close()

    def _answer(self, push: Push) -> Answer:
        answer = self.answers.get(push.token, ACCEPTED)
        self.pushes.append((self.campaigns[push.headers.collapse_id], push.token, answer))
        return answer

    # --- hands of the steps -----------------------------------------------------------------------------------------

    def look(self) -> Books:
        """Read the books anew."""
        self.books = read_books(self.engine)
        return self.books

    def take(self, at: int) -> int:
        """A message out of the queue. When it is empty, what keeps it empty is done away with: by the flow, by time, by
        people, by another campaign."""
        for fill in (self.engine.start, self._let_time_pass, self._let_go_on, lambda: self._enqueue(draft=False)):
            if self.engine.queue:
                break
            fill()
            self.promises_are_kept()
            self.engine.start()
        self.promises_are_kept()
        return self.engine.queue.pop(at % len(self.engine.queue)) if self.engine.queue else NO_BATCH

    def cut(self, at: int, publish: Any) -> None:
        """One look of a fan-out at a campaign."""
        turns = iter((False, True))
        campaign_id = self.engine.sender.campaigns.load(self.key(at)).id
        cut_campaign(self.engine.database, campaign_id, publish, stopped=lambda: next(turns, True))

    def key(self, at: int) -> str:
        """The key of a campaign."""
        return self.keys[at % len(self.keys)]

    def pass_time(self) -> None:
        """What waits is due, what was published long ago is taken for lost, nobody has a campaign's cut reserved."""
        self.engine.bring_forward()
        with self.engine.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.batches SET published_at = NULL WHERE state = 'open'")
            transaction.execute("UPDATE {s}.campaigns SET fanout_until = NULL")

    def reclaim(self) -> None:
        """Take every claim back: between two steps none has a living owner."""
        with self.engine.database.transaction() as transaction:
            for batch, owner, beats in batches.claimed(transaction):
                assert batches.reclaim(transaction, batch, owner, beats, lease=0.0)

    def record(self, claim: Claim, results: Results) -> None:
        """What a worker does at the end of a batch."""
        with self.engine.database.transaction() as transaction:
            record(transaction, claim, results, scale=1.0)

    @contextmanager
    def repeating(self) -> Iterator[None]:
        """What is pushed meanwhile may be pushed again: its answer is not recorded in time."""
        since = len(self.pushes)
        yield
        for campaign, token, _ in self.pushes[since:]:
            self.unrecorded[campaign, token] += 1

    def _enqueue(self, *, draft: bool) -> None:
        if len(self.keys) < MOST_CAMPAIGNS:
            key, options = f"campaign-{len(self.keys)}", self.offers[len(self.keys) % 2]
            row = self.engine.enqueue(key, draft=draft, **options).row
            self.keys.append(key)
            self.options[key], self.campaigns[row.collapse_id] = options, row.id

    def _let_time_pass(self) -> None:
        self.reclaim()
        self.pass_time()
        self.engine.sweep()

    def _let_go_on(self) -> None:
        """People release what they have paused, or not sent."""
        self.engine.sender.apps.resume(BUNDLE)
        for key in self.keys:
            for verb in (self.engine.sender.campaigns.send, self.engine.sender.campaigns.resume):
                with suppress(TransitionError):
                    verb(key)

    # --- what is promised -------------------------------------------------------------------------------------------

    @invariant()
    def promises_are_kept(self) -> None:
        if self.books is None:
            return
        before, now = self.books, self.look()
        if now != before:
            check_moves(before, now)
            check_promises(now)
            for key in self.keys:
                self.engine.report(key)
        for push in self.pushes[self.checked :]:
            self._check_push(before, *push)
            self._check_written(now, *push)
        self.checked = len(self.pushes)

    def _check_push(self, before: Books, campaign: int, token: str, answer: Answer) -> None:
        assert before.campaigns[campaign] == "running", f"pushed while it was {before.campaigns[campaign]}"
        assert before.apps == {BUNDLE: "active"}, "pushed while the app was paused"
        assert (campaign, token) not in before.finals, f"pushed after it was {before.finals[campaign, token]}"
        made = [each for to, device, each in self.pushes if (to, device) == (campaign, token)]
        if before.at_most_once[campaign]:
            arrived = [isinstance(each, Accepted | Unknown) for each in made]
            assert not any(arrived[:-1]), f"pushed again after it may have arrived: {made}"
        accepted = sum(isinstance(each, Accepted) for each in made)
        assert accepted <= 1 + self.unrecorded[campaign, token], f"accepted {accepted} times"

    def _check_written(self, now: Books, campaign: int, token: str, answer: Answer) -> None:
        if isinstance(answer, Accepted) and not self.unrecorded[campaign, token]:
            outcome = now.finals.get((campaign, token))
            assert outcome == "sent", f"APNs has accepted it, and it is {outcome}"

    def _come_to_an_end(self) -> None:
        """APNs accepts, everything is resumed, and what is under way comes to its end."""
        self.answers.clear()
        self.promises_are_kept()
        for _ in range(60):
            self._let_go_on()
            self.reclaim()
            self.pass_time()
            self.engine.start()
            self.look()
            self.engine.work()
            self.promises_are_kept()
            self.engine.sweep()
            if not self.engine.rows("SELECT FROM {s}.campaigns WHERE finished_at IS NULL"):
                break
        now = self.look()
        assert set(now.campaigns.values()) <= {"completed", "cancelled", "failed"}, now.campaigns
        assert (now.open, now.retries, now.intents, now.reservations) == ({}, {}, set(), 0)
        for campaign, tokens in now.cut.items():
            assert {token for to, token in now.finals if to == campaign} == tokens


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
