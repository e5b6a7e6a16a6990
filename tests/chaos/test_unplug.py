"""Plugs are pulled in the middle of campaigns, on the whole stack as a user starts it: nothing is lost, nothing stalls,
and nobody is pushed twice but those whose answers were on their way when it happened.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import psutil
import pytest

from sender.campaigns import Campaign
from sender.errors import TransitionError
from sender.policy.pace import batch_size
from sender.rehearsal import BUNDLE_ID
from sender.simulator import GoAway
from sender.store.reports import PARTS, Report
from tests.chaos.stack import LEASE, SCENARIO, THREADS, WORKERS, ChaosStack, until

RATE = 10_000.0
BATCH = batch_size(RATE, 500)
#: The most that one worker can have in flight.
IN_FLIGHT = THREADS * BATCH
#: Pushes after which the plug is pulled: a good part of the campaign is still to come.
AFTER = 3000


@pytest.fixture(autouse=True)
def _calm(stack: ChaosStack) -> Iterator[None]:
    """Every test begins against an APNs that behaves, with nothing left of the campaign before."""
    yield
    stack.simulator.control.set_scenario(SCENARIO)
    stack.end_campaigns()
    stack.simulator.control.drop()  # a connection keeps the scenario that it was made in


@pytest.fixture
def app_rate(stack: ChaosStack) -> Iterator[None]:
    """A rate of the app's own: batches of a faster campaign then go out in several grants."""
    stack.sender.apps.set_rate(BUNDLE_ID, RATE / 2)
    yield
    stack.sender.apps.set_rate(BUNDLE_ID, None)


def assert_complete(stack: ChaosStack, campaign: Campaign, *, duplicates: int) -> Report:
    """Wait for the campaign, and compare what APNs has seen with what was written down."""
    report = stack.wait(campaign.key)
    accepted = stack.simulator.control.accepted_counts()
    assert (report.state, report.audience, report.sent) == ("completed", stack.devices, stack.devices)
    assert sum(getattr(report, part) for part in PARTS) == report.audience
    assert stack.books.outcomes(campaign.key) == {"sent": stack.devices}
    assert stack.books.open_work(campaign.key) == []
    assert len(accepted) == stack.devices
    twice = sum(accepted.values()) - len(accepted)
    assert twice <= duplicates, f"{twice} duplicates"
    return report


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def test_a_killed_campaign_worker_costs_a_repeat_of_what_it_had_in_flight_at_the_most(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("worker-killed", rate=RATE, after=AFTER)
    kill(stack.process("campaign-1"))
    assert_complete(stack, campaign, duplicates=IN_FLIGHT)


def test_a_killed_control_worker_costs_nothing(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("control-killed", rate=RATE, after=AFTER)
    kill(stack.process("control"))
    assert_complete(stack, campaign, duplicates=0)


def test_a_killed_beat_costs_nothing(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("beat-killed", rate=RATE, after=AFTER)
    kill(stack.process("beat"))
    assert_complete(stack, campaign, duplicates=0)


def test_a_killed_broker_costs_nothing(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("valkey-killed", rate=RATE, after=AFTER)
    kill(stack.server("valkey-server"))
    assert_complete(stack, campaign, duplicates=0)


def test_an_emptied_broker_costs_nothing(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("valkey-emptied", rate=RATE, after=AFTER)
    stack.valkey.flushall()
    assert_complete(stack, campaign, duplicates=0)


def test_a_killed_database_costs_nothing_because_answers_wait_for_it(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("postgres-killed", rate=RATE, after=AFTER)
    kill(stack.server("postgres"))
    assert_complete(stack, campaign, duplicates=0)


def test_a_database_killed_between_two_grants_of_a_batch_costs_nothing_either(
    stack: ChaosStack, app_rate: None
) -> None:
    campaign = stack.start_campaign("postgres-killed-between-grants", rate=None, after=AFTER)
    with stack.grants_held():
        until(lambda: stack.books.waiting_for_locks() >= WORKERS, "workers that wait for a grant")
        kill(stack.server("postgres"))
    assert_complete(stack, campaign, duplicates=0)


def test_a_database_that_is_away_for_longer_than_a_lease_costs_nothing(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("postgres-away", rate=RATE, after=AFTER)
    with stack.nobody_revives():
        kill(stack.server("postgres"))
        time.sleep(LEASE * 1.5)
    assert_complete(stack, campaign, duplicates=0)


def test_cut_connections_to_apns_cost_a_repeat_of_what_was_in_flight_at_the_most(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("connections-cut", rate=RATE, after=AFTER)
    assert stack.simulator.control.drop() > 0
    assert_complete(stack, campaign, duplicates=WORKERS * IN_FLIGHT)


def test_an_apns_that_refuses_connections_for_a_while_is_waited_for(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("connections-refused", rate=RATE, after=AFTER)
    stack.simulator.control.refuse(2, drop=True)
    assert_complete(stack, campaign, duplicates=WORKERS * IN_FLIGHT)


def test_a_goaway_costs_a_repeat_only_of_what_was_delivered_without_an_answer(stack: ChaosStack) -> None:
    goaway = GoAway(after_requests=(1000, 2000), above=30, unanswered=5, close_after_ms=300)
    stack.simulator.control.set_scenario(SCENARIO.model_copy(update={"goaway": goaway}))
    stack.simulator.control.drop()  # the scenario takes hold with new connections
    campaign = stack.start_campaign("goaway", rate=RATE, after=AFTER)
    stack.wait(campaign.key)
    counters = stack.simulator.control.counters()
    unanswered = counters.delivered - counters.by_status[200]
    assert unanswered > 0
    assert_complete(stack, campaign, duplicates=unanswered)


def test_a_worker_frozen_for_longer_than_its_lease_costs_what_it_had_in_flight_at_the_most(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("worker-frozen", rate=RATE, after=AFTER)
    worker = stack.process("campaign-1")
    worker.suspend()
    time.sleep(LEASE * 1.5)
    worker.resume()
    assert_complete(stack, campaign, duplicates=IN_FLIGHT)


def test_pausing_and_resuming_at_full_speed_sends_exactly_once(stack: ChaosStack) -> None:
    for key in ("paused", "paused-again", "paused-once-more"):  # a machine that stalls has sent all by then
        campaign = stack.start_campaign(key, rate=None, after=2000)
        with suppress(TransitionError):
            campaign.pause("a look at it")
        until(lambda: stack.sender.campaigns.report(campaign.key).in_flight == 0, "what is in flight")
        if (seen := stack.requests()) < stack.devices:
            break
        with suppress(TransitionError):
            campaign.resume()
        stack.wait(key)
    assert seen < stack.devices
    time.sleep(0.5)
    assert stack.requests() == seen
    campaign.resume()
    assert_complete(stack, campaign, duplicates=0)


def test_killing_every_process_at_once_costs_what_was_in_flight_at_the_most(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("everything-killed", rate=RATE, after=AFTER)
    stack.kill_everything()
    assert stack.requests() < stack.devices
    stack.start_again()
    assert_complete(stack, campaign, duplicates=WORKERS * IN_FLIGHT)


def test_a_stopped_stack_goes_on_by_itself_when_it_is_started_again(stack: ChaosStack) -> None:
    campaign = stack.start_campaign("stopped", rate=RATE, after=AFTER)
    up = stack.up
    up.terminate()
    up.wait(60)
    assert stack.requests() < stack.devices
    stack.start_again()
    assert_complete(stack, campaign, duplicates=0)
