"""At most once, on the whole stack: whatever is killed, nobody is pushed to twice."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.chaos.stack import LEASE, ChaosStack

AFTER = 3000


@pytest.fixture(autouse=True)
def _calm(stack: ChaosStack) -> Iterator[None]:
    yield
    stack.end_campaigns()


def assert_at_most_once(stack: ChaosStack, key: str, *, unknown: int) -> None:
    """Every device has its end, none was pushed to twice, and no more are unknown than had an open intent."""
    report = stack.wait(key)
    accepted = stack.simulator.control.accepted_counts()
    assert (report.state, report.sent + report.unknown) == ("completed", stack.devices)
    assert stack.books.outcomes(key) == {
        name: count for name, count in (("sent", report.sent), ("unknown", report.unknown)) if count
    }
    assert stack.books.open_work(key) == []
    assert max(accepted.values()) == 1
    assert len(accepted) >= report.sent
    assert report.unknown <= unknown, f"{report.unknown} unknown"
    assert set(report.by_reason) <= {"MayHaveBeenSent", "NoAnswer"}


def open_intents(stack: ChaosStack, key: str) -> int:
    moment = stack.books.moment(key)
    assert moment is not None
    return moment.intents


def test_a_worker_that_is_killed_at_full_speed_sends_nothing_twice(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("once-killed", rate=None, after=AFTER, delivery="at_most_once")
    worker = stack.process("campaign-1")
    worker.suspend()  # what it has announced stands still, and can be counted
    stack.books.wait_for_what_is_under_way()
    intents = open_intents(stack, campaign.key)
    worker.kill()
    assert_at_most_once(stack, campaign.key, unknown=intents)


def test_a_worker_that_is_frozen_for_longer_than_its_lease_sends_nothing_twice(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("once-frozen", rate=None, after=AFTER, delivery="at_most_once")
    worker = stack.process("campaign-1")
    with stack.frozen(worker):
        stack.books.wait_for_what_is_under_way()
        intents = open_intents(stack, campaign.key)
        time.sleep(LEASE * 2)
    assert_at_most_once(stack, campaign.key, unknown=intents)


def test_everything_that_is_killed_at_once_sends_nothing_twice(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("once-all-killed", rate=10_000.0, after=AFTER, delivery="at_most_once")
    stack.kill_everything()
    stack.start_again()
    intents = open_intents(stack, campaign.key)
    report = stack.sender.campaigns.report(campaign.key)
    assert_at_most_once(stack, campaign.key, unknown=intents + report.unknown)


def test_a_database_that_is_killed_costs_no_push_and_no_certainty(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("once-postgres-killed", rate=10_000.0, after=AFTER, delivery="at_most_once")
    stack.server("postgres").kill()
    assert_at_most_once(stack, campaign.key, unknown=0)
