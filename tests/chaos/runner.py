"""One round: a campaign at full speed, faults at their moments, and the verdict when everything is over."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from random import Random

from tests.chaos.flight import Bound, bound_of
from tests.chaos.plan import Planned
from tests.chaos.scene import Scene
from tests.chaos.stack import ChaosStack, until
from tests.chaos.verdict import Evidence, Verdict, judge

#: Seconds that a campaign may take, from its start to its end, whatever is done to it.
LONGEST = 240.0
#: Seconds that a fault may take to be over, beyond what it lasts: servers and workers start anew.
OVER_WITHIN = 150.0
#: Seconds after which the simulator has read what was sent to it while it stood still.
CATCHING_UP = 0.3
#: Deaths of one process after which the next round begins with a new `sender up`: it is put off longer every time.
MOST_KILLS = 2

LOSSES = ("answer_lost", "dropped_after", "reset_after_headers")  # delivered without an answer, by the simulator
SILENCES = (*LOSSES, "reset", "silent", "dropped_before")  # without an answer, delivered or not
CHILDREN = ("control", "beat", "priority", "campaign-1", "campaign-2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One round of the table."""

    label: str
    seed: int | None
    delivery: str
    struck: tuple[str, ...]  # the faults that struck before the campaign was over
    seconds: float
    verdict: Verdict


class Striker(threading.Thread):
    """One fault, from its beginning to its end, beside the others."""

    def __init__(self, stack: ChaosStack, key: str, planned: Planned) -> None:
        super().__init__(name=planned.fault.name, daemon=True)
        self.planned = planned
        self.error: str | None = None
        self.bound = Bound()
        self._stack = stack
        self._key = key

    def told(self, *, at_most_once: bool) -> str:
        """Its name, and how many devices it may have had repeated, or left unknown."""
        most = self.bound.unknown if at_most_once else self.bound.repeats
        return f"{self.name} ({most:,})" if most else self.name

    def run(self) -> None:
        fault = self.planned.fault
        try:
            with closing(self._stack.open_books()) as books:
                scene = Scene(stack=self._stack, key=self._key, books=books)
                with fault.strike(scene, Random(self.planned.seed)):
                    if not fault.throughout:
                        scene.look_after()
                    time.sleep(self.planned.lasts)
                if fault.throughout:
                    time.sleep(CATCHING_UP)
                    scene.look_after()
                    scene.delivered = self._stack.simulator.control.counters().delivered
        except Exception:
            self.error = traceback.format_exc(limit=5)
            return
        self.bound = bound_of(
            scene.before, scene.after, repeats=fault.repeats, unknown=fault.unknown, delivered=scene.delivered
        )


def run_round(
    stack: ChaosStack,
    plan: Sequence[Planned],
    *,
    name: str,
    label: str = "",
    seed: int | None = None,
    delivery: str = "at_least_once",
    rate: float | None = None,
) -> Round:
    """Send a campaign to every device of the stack, strike, wait for its end, compare."""
    _get_well(stack)
    began = time.monotonic()
    stack.start_campaign(name, rate=rate, delivery=delivery)
    strikers = _strike(stack, name, plan, end=began + LONGEST)
    failures = _wait_until_over(strikers)
    state = _wait_for_end(stack, name, end=began + LONGEST)
    seconds = time.monotonic() - began
    bound = sum((striker.bound for striker in strikers), Bound())
    at_most_once = delivery == "at_most_once"
    verdict = judge(_evidence(stack, name, state), bound, at_most_once=at_most_once, failures=failures)
    struck = tuple(striker.told(at_most_once=at_most_once) for striker in strikers)
    return Round(label=label or name, seed=seed, delivery=delivery, struck=struck, seconds=seconds, verdict=verdict)


def _get_well(stack: ChaosStack) -> None:
    """Every process is there, and whoever died often is not put off for long."""
    if stack.kills and max(stack.kills.values()) >= MOST_KILLS:
        stack.restart()
    for child in CHILDREN:
        stack.process(child)


def _strike(stack: ChaosStack, key: str, plan: Sequence[Planned], *, end: float) -> list[Striker]:
    """Begin every fault at its moment; returns those that struck before the campaign was over."""
    strikers: list[Striker] = []
    for planned in plan:
        patience = time.monotonic() + planned.patience
        while (settled := stack.books.settled(key)) is None or settled < planned.share * stack.devices:
            if time.monotonic() > min(patience, end):
                break
            time.sleep(0.02)
        until(lambda: _may_strike(planned, strikers), f"room for {planned.fault.name}", timeout=OVER_WITHIN)
        if stack.books.settled(key) == stack.devices or time.monotonic() > end:
            break
        strikers.append(Striker(stack, key, planned))
        strikers[-1].start()
    return strikers


def _may_strike(planned: Planned, strikers: Sequence[Striker]) -> bool:
    under_way = [striker.planned.fault for striker in strikers if striker.is_alive()]
    fault = planned.fault
    return not any(fault.alone or each.alone or (fault.apns and each.apns) for each in under_way)


def _wait_until_over(strikers: Sequence[Striker]) -> list[str]:
    """Wait for the end of every fault; returns what went wrong with the striking itself."""
    failures = []
    for striker in strikers:
        striker.join(striker.planned.lasts + OVER_WITHIN)
        if striker.is_alive():
            failures.append(f"{striker.name} does not come to its end")
        elif striker.error:
            failures.append(f"{striker.name} failed: {striker.error}")
    return failures


def _wait_for_end(stack: ChaosStack, key: str, *, end: float) -> str:
    """Wait until the campaign is over and APNs sees nothing more; returns the campaign's state."""
    try:
        report = stack.wait(key, timeout=max(5.0, end - time.monotonic()))
    except TimeoutError:
        return stack.sender.campaigns.load(key).state.value
    seen = -1
    while seen != (now := stack.requests()):
        seen = now
        time.sleep(0.5)
    return report.state.value


def _evidence(stack: ChaosStack, key: str, state: str) -> Evidence:
    control = stack.simulator.control
    reasons = control.counters().by_reason
    return Evidence(
        devices=stack.devices,
        state=state,
        finals=stack.books.finals(key),
        counted=stack.books.counted(key),
        audience=stack.sender.campaigns.report(key).audience,
        open_work=len(stack.books.open_work(key)),
        accepted=control.accepted_counts(),
        said_nothing=sum(reasons.get(reason, 0) for reason in LOSSES),
        lost_answers=sum(reasons.get(reason, 0) for reason in SILENCES),
    )
