"""A whole stack and an APNs that serves it badly: everything is delivered in the end, nothing happens in a storm, and
people can see why it takes longer."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import psycopg
import pytest

from sender import Alert, Payload
from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, Rehearsal
from sender.settings import load_settings
from sender.simulator import GoAway, Outage, OutageKind, Scenario, Shares, Storm
from sender.store.breakers import Breaker
from sender.store.reports import Report
from tests.acceptance.conftest import Cli

pytestmark = pytest.mark.alone

DEVICES = 2000
HELLO = Payload(alert=Alert(title="Hello", body="World"))


@pytest.fixture(scope="module")
def stack() -> Iterator[Rehearsal]:
    """`sender up` with two workers, an app and devices. Times of waiting are a two-hundredth of what they are."""
    with Rehearsal(scenario=Scenario(seed=1), environment={"SENDER_LOG_FORMAT": "json"}) as stack:
        stack.sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=stack.key_file)
        stack.sender.devices.import_file(stack.write_devices(DEVICES), app=BUNDLE_ID)
        yield stack


@pytest.fixture(autouse=True)
def _start_well(stack: Rehearsal) -> None:
    """A simulator that behaves, and credentials at full speed."""
    stack.simulator.control.set_scenario(Scenario(seed=1))
    stack.simulator.control.goaway(reason="Shutdown")
    stack.simulator.control.reset()
    with psycopg.connect(load_settings(data_dir=stack.data_dir).require_database_url()) as connection:
        connection.execute("DELETE FROM sender.breakers")


class Watched:
    """A campaign that is looked at until it is over."""

    def __init__(self, stack: Rehearsal, key: str, *, rate: float | None = 500.0) -> None:
        self.stack, self.key = stack, key
        self.breakers: list[Breaker] = []
        stack.sender.campaigns.enqueue(BUNDLE_ID, key=key, payload=HELLO, rate=rate)

    def until_sent(self, count: int) -> None:
        end = time.monotonic() + 60
        while self.stack.simulator.control.counters().delivered < count:
            assert time.monotonic() < end
            time.sleep(0.02)

    def look(self) -> Report:
        report = self.stack.sender.campaigns.report(self.key)
        self.breakers += report.credentials
        return report

    def until_over(self, *, within: float = 120.0) -> Report:
        end = time.monotonic() + within
        while not (report := self.look()).finished:
            assert time.monotonic() < end, report
            time.sleep(0.25)
        return report

    @property
    def paces(self) -> list[float]:
        return [each.pace for each in self.breakers if each.pace is not None]


def events(stack: Rehearsal, *names: str) -> list[tuple[datetime, str]]:
    """When these events happened, in all processes."""
    found = []
    for file in (stack.data_dir / "logs").glob("*.log"):
        for line in re.findall(r"^\{.*\}$", file.read_text(errors="replace"), re.MULTILINE):
            event = json.loads(line)
            if event.get("event") in names:
                found.append((datetime.fromisoformat(event["timestamp"]), event["event"]))
    return sorted(found)


def test_refused_connections_lose_nothing_and_bring_no_storm(stack: Rehearsal, cli: Cli) -> None:
    campaign = Watched(stack, "refused")
    campaign.until_sent(500)
    before = len(events(stack, "apns_connect_failed"))
    began = time.monotonic()
    stack.simulator.control.refuse(120.0, drop=True)
    seen: list[str] = []
    while not seen or time.monotonic() < began + 7.5:
        assert time.monotonic() < began + 90
        if [each for each in campaign.look().credentials if not each.closed] and not seen:
            seen = [cli(*command).stdout for command in (("apps", "show", BUNDLE_ID), ("doctor", "--only", "apps"))]
        time.sleep(0.2)
    stack.simulator.control.set_scenario(Scenario(seed=1))  # connections are welcome again
    lasted = time.monotonic() - began
    report = campaign.until_over()
    assert report.sent == DEVICES
    assert len(stack.simulator.accepted_counts()) == DEVICES
    failed = events(stack, "apns_connect_failed")[before:]
    assert 3 <= len(failed) < 9 * lasted
    assert any(not each.closed and each.cause and "refused the connection" in each.cause for each in campaign.breakers)
    assert campaign.paces, "no ramp after the rest"
    assert all("refused the connection" in " ".join(text.split()) for text in seen), seen
    told = Counter(name for _, name in events(stack, "breaker_opened", "breaker_half_opened", "breaker_closed"))
    assert told["breaker_opened"] == told["breaker_half_opened"] - told["breaker_closed"] + 1
    assert told["breaker_closed"] == 1


def test_one_throttled_device_in_a_hundred_is_delivered_later_and_slows_nobody(stack: Rehearsal) -> None:
    stack.simulator.control.set_scenario(Scenario(seed=1, shares=Shares(throttled=0.01), tries=1))
    campaign = Watched(stack, "throttled")
    report = campaign.until_over()
    assert report.sent == DEVICES
    counters = stack.simulator.control.counters()
    assert counters.by_reason["TooManyRequests"] >= 10
    assert set(stack.simulator.accepted_counts().values()) == {1}
    assert campaign.breakers == []


def test_broad_503s_lower_the_pace_and_it_climbs_back(stack: Rehearsal) -> None:
    stack.simulator.control.set_scenario(Scenario(seed=1, storms=(Storm(status=503, share=0.4, for_seconds=3),)))
    campaign = Watched(stack, "storm")
    assert campaign.until_over().sent == DEVICES
    assert set(stack.simulator.accepted_counts().values()) == {1}
    paces = campaign.paces
    assert min(paces) < 250
    assert max(paces[paces.index(min(paces)) :]) > min(paces) * 2
    assert {each.pace_cause for each in campaign.breakers if each.pace_cause and "5xx" in each.pace_cause}


@pytest.mark.parametrize(
    ("key", "scenario"),
    [
        ("tls", Scenario(seed=1, outages=(Outage(kind=OutageKind.TLS_ALERT, for_seconds=60, drop=True),))),
        ("goaways", Scenario(seed=1, goaway=GoAway(after_requests=(30, 60), error_code=11))),
        ("refused-streams", Scenario(seed=1, shares=Shares(refused=0.5), tries=1)),
    ],
    ids=["handshakes fail", "GOAWAYs with an error", "streams are refused"],
)
def test_other_troubles_are_seen_and_survived_too(stack: Rehearsal, key: str, scenario: Scenario) -> None:
    stack.simulator.control.set_scenario(scenario)
    stack.simulator.control.goaway(reason="Shutdown")
    campaign = Watched(stack, key)
    end = time.monotonic() + 30
    while not campaign.breakers:
        assert time.monotonic() < end
        campaign.look()
        time.sleep(0.05)
    stack.simulator.control.set_scenario(Scenario(seed=1))
    stack.simulator.control.goaway(reason="Shutdown")
    assert campaign.until_over().sent == DEVICES
    assert len(stack.simulator.accepted_counts()) == DEVICES
