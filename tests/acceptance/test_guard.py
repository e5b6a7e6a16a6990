"""What a wrong setting costs, as a user runs into it: the whole stack, two workers, and a simulator that knows to which
environment and app its tokens belong."""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sender import Alert, Payload, Segment
from sender.campaigns import Campaign
from sender.model import Environment
from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, Rehearsal
from sender.simulator import Rule, Scenario, Shares
from tests.acceptance.conftest import Cli

DEVICES = 50_000
HELLO = Payload(alert=Alert(title="Hello", body="World"))


@pytest.fixture(autouse=True)
def _afterwards(stack: Rehearsal) -> Iterator[None]:
    stack.simulator.control.reset()
    yield
    for row in stack.sender.campaigns.list():
        if row.finished_at is None:
            stack.sender.campaigns.cancel(row.key)
            stack.sender.campaigns.wait(row.key, timeout=60)
    stack.simulator.control.set_scenario(Scenario(seed=1))
    stack.sender.apps.resume(BUNDLE_ID)
    stack.sender.apps.set_healing(BUNDLE_ID, False)


def import_devices(stack: Rehearsal, cli: Cli, plan: str, count: int) -> None:
    """A file of tokens that says production of all of them."""
    chance = random.Random(plan)
    path = Path(stack.directory / f"{plan}.csv")
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("token", "environment", "registered_at", "plan"))
        for _ in range(count):
            writer.writerow((f"{chance.getrandbits(256):064x}", "production", "2026-01-01T00:00:00Z", plan))
    done = cli("devices", "import", str(path), "--app", BUNDLE_ID)
    assert done.returncode == 0, done.stderr


def start(stack: Rehearsal, key: str, plan: str, rate: float | None = None) -> Campaign:
    audience = Segment.where(plan=plan)
    return stack.sender.campaigns.enqueue(BUNDLE_ID, key=key, payload=HELLO, audience=audience, rate=rate)


def count(stack: Rehearsal, statement: str, plan: str) -> dict[str, int]:
    """Devices of a plan by something of theirs."""
    with stack.sender._services.database.transaction() as transaction:
        found = transaction.execute(
            f"SELECT {statement}, count(*) FROM {{s}}.devices WHERE attributes->>'plan' = %s GROUP BY 1", (plan,)
        )
        return dict(found.fetchall())


def test_a_table_imported_with_the_wrong_environment_costs_hundreds_of_pushes_and_no_token(
    stack: Rehearsal, cli: Cli, show: Callable[[str], dict[str, Any]]
) -> None:
    import_devices(stack, cli, "wrong", DEVICES)
    stack.simulator.control.set_scenario(Scenario(seed=1, token_environment=Environment.SANDBOX))
    report = start(stack, "wrong", "wrong").wait(timeout=60)
    assert (report.state, report.state_actor) == ("paused", "system")
    assert report.state_reason is not None
    assert "tokens imported with the wrong environment" in report.state_reason
    assert f"sender apps heal {BUNDLE_ID} on" in report.state_reason
    time.sleep(1)  # whatever was still under way
    assert stack.simulator.control.counters().requests < 2000
    states = count(stack, "state", "wrong")
    assert set(states) == {"active", "quarantined"}
    assert states["quarantined"] < 2000
    shown = cli("campaigns", "show", "wrong")
    assert "tokens imported with the wrong environment" in " ".join(shown.stdout.replace("│", " ").split())
    # Every one of them is put back, and with healing on all are delivered, and move.
    stack.sender.campaigns.cancel("wrong")
    stack.sender.campaigns.wait("wrong", timeout=60)
    done = cli("devices", "restore", "--campaign", "wrong")
    assert done.returncode == 0, done.stderr
    assert count(stack, "state", "wrong") == {"active": DEVICES}
    assert cli("apps", "heal", BUNDLE_ID, "on").returncode == 0
    stack.simulator.control.reset()
    report = start(stack, "healed", "wrong").wait(timeout=60)
    assert (report.state, report.sent) == ("completed", DEVICES)
    assert count(stack, "environment", "wrong") == {"sandbox": DEVICES}
    assert set(stack.simulator.control.accepted_counts().values()) == {1}
    wasted = stack.simulator.control.counters().requests - DEVICES
    assert 0 < wasted < 3000
    moved = stack.sender.changelog.read(campaign="healed", limit=10).changes
    assert {(change.kind, change.old["environment"], change.new["environment"]) for change in moved} == {
        ("environment_changed", "production", "sandbox")
    }
    assert show("healed")["sent"] == DEVICES


def test_tokens_of_another_app_pause_the_campaign_and_cost_no_token(stack: Rehearsal, cli: Cli) -> None:
    import_devices(stack, cli, "others", 5000)
    stack.simulator.control.set_scenario(Scenario(seed=1, shares=Shares(wrong_topic=1.0)))
    report = start(stack, "others", "others").wait(timeout=60)
    assert report.state == "paused"
    assert "DeviceTokenNotForTopic" in str(report.state_reason)
    assert set(count(stack, "state", "others")) == {"active", "quarantined"}


def test_a_key_of_another_team_pauses_the_app_before_anything_is_sent(stack: Rehearsal, cli: Cli) -> None:
    import_devices(stack, cli, "team", 3000)
    stack.sender.apps.set_credential(BUNDLE_ID, team_id="OTHERTEAM1", key_id=KEY_ID, key_file=stack.key_file)
    try:
        report = start(stack, "team", "team").wait(timeout=60)
        app = stack.sender.apps.show(BUNDLE_ID)
        assert (app.state, report.sent, report.pending + report.in_flight) == ("paused", 0, 3000)
        assert "InvalidProviderToken" in str(app.state_reason)
        assert "team id" in str(app.state_reason)
        assert count(stack, "state", "team") == {"active": 3000}
    finally:
        stack.sender.apps.set_credential(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=stack.key_file)
    assert cli("apps", "resume", BUNDLE_ID).returncode == 0
    assert stack.sender.campaigns.wait("team", timeout=60).sent == 3000


def test_a_key_that_is_revoked_in_the_middle_pauses_the_app_and_costs_no_token(stack: Rehearsal, cli: Cli) -> None:
    import_devices(stack, cli, "revoked", 10_000)
    campaign = start(stack, "revoked", "revoked", rate=3000)
    while campaign.report().sent < 1000:
        time.sleep(0.02)
    stack.simulator.control.set_rules([Rule(prefix="", status=403, reason="InvalidProviderToken", tries=0)])
    report = campaign.wait(timeout=60)
    assert stack.sender.apps.show(BUNDLE_ID).state == "paused"
    assert "the key was revoked" in str(report.app_state_reason)
    assert count(stack, "state", "revoked") == {"active": 10_000}
    stack.simulator.control.set_rules([])
    assert cli("apps", "resume", BUNDLE_ID).returncode == 0
    assert campaign.wait(timeout=60).sent == 10_000
    assert set(stack.simulator.control.accepted_counts().values()) == {1}


@pytest.mark.parametrize("dead", [0.3, 0.7])
def test_an_ordinary_list_and_a_half_dead_first_campaign_raise_no_alarm(
    stack: Rehearsal, cli: Cli, dead: float
) -> None:
    plan = f"dead-{dead}"
    import_devices(stack, cli, plan, 4000)
    shares = Shares(unregistered=dead, other_environment=0.01, wrong_topic=0.005)
    stack.simulator.control.set_scenario(Scenario(seed=1, shares=shares))
    with stack.sender._services.database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.baselines")
    report = start(stack, plan, plan).wait(timeout=60)
    assert report.state == "completed", report.state_reason
    states = count(stack, "state", plan)
    assert states["invalid"] == report.by_reason["Unregistered"] == pytest.approx(4000 * dead, rel=0.2)
    assert states["quarantined"] == report.by_reason["BadDeviceToken"] + report.by_reason["DeviceTokenNotForTopic"]


def test_a_tiny_audience_and_a_slow_rate_are_judged_by_their_first_results(stack: Rehearsal, cli: Cli) -> None:
    import_devices(stack, cli, "slow", 200)
    stack.simulator.control.set_scenario(Scenario(seed=1, token_environment=Environment.SANDBOX))
    report = start(stack, "slow", "slow", rate=20).wait(timeout=60)
    assert report.state == "paused"
    assert report.rejected <= 100
    import_devices(stack, cli, "tiny", 15)
    assert start(stack, "tiny", "tiny").wait(timeout=60).state == "paused"
    assert count(stack, "state", "tiny") == {"quarantined": 15}
