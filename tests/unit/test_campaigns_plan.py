"""What an enqueue is checked for before it touches the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from sender import DEFAULT, InvalidCampaignError, InvalidPayloadError, InvalidSegmentError, Payload, Segment
from sender.apns_ids import delivery_apns_id
from sender.payload import AUTO
from sender.planning.plan import Plan, make_plan
from sender.settings import Settings

PLAIN = Settings(default_rate=1234, expires_in=86_400, start_grace=60, batch_size=50)


def plan(settings: Settings = PLAIN, **changes: Any) -> Plan:
    arguments: dict[str, Any] = {
        "key": "spring",
        "payload": Payload(alert="x"),
        "audience": Segment.all(),
        "rate": DEFAULT,
        "expires_in": None,
        "send_at": None,
        "grace": None,
        "batch_size": None,
        "delivery": "at_least_once",
        "push_type": None,
        "priority": None,
        "collapse_id": AUTO,
    }
    return make_plan(settings, "com.example.news", **(arguments | changes))


def test_what_is_not_said_comes_from_the_settings() -> None:
    made = plan()
    assert (made.rate, made.expires_in, made.grace, made.batch_size) == (1234, 86_400, 60, 50)


def test_no_rate_lifts_the_limit_and_no_lifetime_means_one_attempt() -> None:
    made = plan(rate=None, expires_in=0)
    assert (made.rate, made.expires_in) == (None, 0)
    assert plan(expires_in=timedelta(days=30)).expires_in == 30 * 86_400


def test_a_changed_default_does_not_make_another_campaign() -> None:
    assert plan().content == plan(Settings(default_rate=9, expires_in=1, start_grace=1, batch_size=1)).content
    assert plan().content != plan(rate=1234).content


def test_the_same_moment_in_another_zone_is_the_same_content() -> None:
    moment = datetime(2027, 4, 1, 12, tzinfo=UTC)
    assert plan(send_at=moment).content == plan(send_at=moment.astimezone()).content


@pytest.mark.parametrize(
    "changes",
    [
        {"key": ""},
        {"key": " x"},
        {"key": "a\nb"},
        {"key": "x" * 201},
        {"key": "\ud800"},
        {"key": 5},
        {"audience": "all"},
        {"rate": 0},
        {"rate": -1},
        {"rate": 1e-300},
        {"rate": float("nan")},
        {"rate": "fast"},
        {"rate": True},
        {"expires_in": -1},
        {"expires_in": timedelta(days=1000)},
        {"expires_in": "30d"},
        {"expires_in": float("inf")},
        {"send_at": datetime(2027, 1, 1)},
        {"send_at": "2027-01-01"},
        {"grace": -1},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"batch_size": 100_000},
        {"delivery": "exactly_once"},
        {"exclude_sent": 5},
        {"exclude_sent": [5]},
    ],
)
def test_what_cannot_be_sent_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((InvalidCampaignError, InvalidSegmentError)):
        plan(**changes)


def test_faults_of_the_payload_and_of_the_rest_are_told_together() -> None:
    with pytest.raises(InvalidCampaignError) as caught:
        plan(payload=Payload(badge=-1, sound=3), rate=-1, batch_size=0, delivery="x", send_at=datetime(2027, 1, 1))
    assert len(caught.value.faults) == 6


def test_a_fault_of_the_payload_alone_is_a_payload_error() -> None:
    with pytest.raises(InvalidPayloadError):
        plan(payload=Payload())


@pytest.mark.parametrize(("campaign", "device"), [(1, 1), (2**40, 2**62 - 1), (123, 456)])
def test_an_apns_id_is_canonical_and_names_its_delivery(campaign: int, device: int) -> None:
    number = UUID(delivery_apns_id(campaign, device))
    assert str(number) == delivery_apns_id(campaign, device)  # canonical
    assert number.version == 8
    assert (number.int >> 80, number.int & (1 << 62) - 1) == (campaign, device)
