"""A Redis that others use too: every key of ours carries the prefix that was asked for, and everything still works."""

from __future__ import annotations

import redis

from sender import Alert, Payload
from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, Rehearsal
from sender.simulator import Scenario


def test_every_key_carries_the_prefix_and_a_campaign_completes() -> None:
    environment = {"SENDER_BROKER_KEY_PREFIX": "ours:", "SENDER_QUEUE_PREFIX": "pushes"}
    with Rehearsal(scenario=Scenario(seed=3), workers=1, environment=environment) as stack:
        stack.sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=stack.key_file)
        for number in range(120):
            stack.sender.devices.register(BUNDLE_ID, f"{number:064x}", environment="production")
        campaign = stack.sender.campaigns.enqueue(
            BUNDLE_ID, key="prefixed", payload=Payload(alert=Alert(title="Hello")), rate=None, batch_size=10
        )
        report = campaign.wait(timeout=60)
        broker = redis.Redis.from_url(stack.sender.settings.require_broker_url())
        keys = [key.decode() for key in broker.scan_iter()]
    assert (report.state, report.sent) == ("completed", 120)
    assert keys
    assert [key for key in keys if not key.startswith("ours:")] == []
