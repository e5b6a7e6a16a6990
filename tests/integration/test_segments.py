"""Segments as SQL: whom each one finds on a real PostgreSQL, and whom a push can reach."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sender import PushType, Segment
from sender.audience import parse_where
from sender.store.database import Database, Transaction
from sender.store.segments import compile_segment, count_audience, devices, reachable
from tests.integration.campaign_rows import APP, PAYLOAD, add_app, add_delivery, add_device, add_devices, start

NOW = datetime(2027, 4, 1, tzinfo=UTC)
PEOPLE: dict[str, dict[str, Any]] = {
    "ann": {
        "locale": "fr-FR",
        "timezone": "Europe/Paris",
        "attributes": {"plan": "pro", "age": 30, "tags": ["news", "sport"], "vip": True, "since": "2026-05-01"},
        "registered_at": NOW - timedelta(days=10),
        "last_seen_at": NOW - timedelta(days=1),
    },
    "bob": {
        "locale": "en_GB",
        "timezone": "Europe/London",
        "attributes": {"plan": "free", "age": 17.5, "vip": 1, "tags": "news"},
        "registered_at": NOW - timedelta(days=400),
        "last_seen_at": NOW - timedelta(days=100),
    },
    "cy": {"locale": "FR", "environment": "sandbox", "attributes": {"age": "30", "plan": None, "note": "a'b\\\"%s"}},
    "dee": {"attributes": {}},
}


@pytest.fixture
def people(database: Database) -> Iterator[tuple[Transaction, int, dict[int, str]]]:
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        names = {
            add_device(transaction, app_id, number, user=name, **columns): name
            for number, (name, columns) in enumerate(PEOPLE.items(), 1)
        }
        other = add_app(transaction, bundle_id="com.example.other")
        add_device(transaction, other, 99, user="ann", **PEOPLE["ann"])
        yield transaction, app_id, names


def found(people: tuple[Transaction, int, dict[int, str]], segment: Segment) -> set[str]:
    transaction, app_id, names = people
    rows = transaction.rows(sa.select(devices.c.id).where(compile_segment(segment, app_id, NOW)))
    return {names[row["id"]] for row in rows}


@pytest.mark.parametrize(
    ("segment", "whom"),
    [
        (Segment.all(), {"ann", "bob", "cy", "dee"}),
        (Segment.where(plan="pro"), {"ann"}),
        (Segment.where(plan=["pro", "free"]), {"ann", "bob"}),
        (Segment.where(plan=None), {"cy", "dee"}),
        (Segment.where(plan=["pro", None]), {"ann", "cy", "dee"}),
        (~Segment.where(plan="pro"), {"bob", "cy", "dee"}),
        (Segment.where(age=30), {"ann"}),
        (Segment.where(age=30.0), {"ann"}),
        (Segment.where(age="30"), {"cy"}),
        (Segment.where(vip=True), {"ann"}),
        (Segment.where(vip=1), {"bob"}),
        (Segment.where(note="a'b\\\"%s"), {"cy"}),
        (Segment.where(**{"'; DROP TABLE devices; --": 1}), set()),
        (Segment.compare("age", ">=", 18), {"ann"}),
        (Segment.compare("age", "<", 17.6), {"bob"}),
        (~Segment.compare("age", ">=", 18), {"bob", "cy", "dee"}),
        (Segment.compare("age", ">=", "0"), {"cy"}),
        (Segment.compare("since", "<", "2027-01-01"), {"ann"}),
        (Segment.compare("plan", "!=", "pro"), {"bob", "cy", "dee"}),
        (Segment.contains("tags", "news"), {"ann"}),
        (Segment.locale("fr_fr"), {"ann"}),
        (Segment.language("fr"), {"ann", "cy"}),
        (Segment.language("FR", "en"), {"ann", "bob", "cy"}),
        (~Segment.language("fr"), {"bob", "dee"}),
        (Segment.timezone("Europe/Paris", "Asia/Tokyo"), {"ann"}),
        (Segment.environment("sandbox"), {"cy"}),
        (Segment.users("ann", "dee", "nobody"), {"ann", "dee"}),
        (~Segment.users("ann"), {"bob", "cy", "dee"}),
        (Segment.registered(after=timedelta(days=30)), {"ann"}),
        (Segment.registered(before=NOW - timedelta(days=30)), {"bob"}),
        (Segment.last_seen(after=NOW - timedelta(days=200), before=NOW - timedelta(days=50)), {"bob"}),
        (~Segment.last_seen(before=timedelta(days=50)), {"ann", "cy", "dee"}),
        (Segment.percentage(100), {"ann", "bob", "cy", "dee"}),
        (Segment.percentage(0), set()),
        (Segment.where(plan="pro") | Segment.environment("sandbox"), {"ann", "cy"}),
        (Segment.language("fr") & ~Segment.environment("sandbox"), {"ann"}),
        (parse_where("age=30"), {"ann", "cy"}),
        (parse_where("plan in pro,free"), {"ann", "bob"}),
        (parse_where("tags has sport"), {"ann"}),
    ],
)
def test_a_segment_finds_its_devices_and_no_others(people: Any, segment: Segment, whom: set[str]) -> None:
    assert found(people, segment) == whom


SIMPLE = st.sampled_from(
    [
        Segment.where(plan="pro"),
        Segment.compare("age", ">", 18),
        Segment.language("fr"),
        Segment.environment("sandbox"),
        Segment.users("ann", "bob"),
        Segment.last_seen(after=timedelta(days=50)),
        Segment.contains("tags", "news"),
        Segment.percentage(50, "seed"),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SIMPLE, SIMPLE)
def test_combinations_are_those_of_sets(people: Any, one: Segment, two: Segment) -> None:
    everybody = set(PEOPLE)
    first, second = found(people, one), found(people, two)
    assert found(people, one & two) == first & second
    assert found(people, one | two) == first | second
    assert found(people, ~one) == everybody - first
    assert found(people, ~(one & ~two)) == everybody - (first - second)


def test_a_share_is_stable_grows_around_itself_and_depends_on_the_seed(database: Database) -> None:
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        add_devices(transaction, app_id, 5000)

        def share(percent: float, seed: str) -> set[int]:
            statement = sa.select(devices.c.id).where(compile_segment(Segment.percentage(percent, seed), app_id))
            return {row["id"] for row in transaction.rows(statement)}

        ten, twenty, other = share(10, "a"), share(20, "a"), share(10, "b")
        assert share(10, "a") == ten
        assert ten < twenty
        assert other != ten
        assert 400 < len(ten) < 600
        assert 25 < len(share(1, "a")) < 80


def test_the_audience_counts_the_reachable_and_says_why_the_others_are_left_out(database: Database) -> None:
    rows: list[dict[str, Any]] = [
        {},
        {"state": "blocklisted", "blocklisted_until": NOW},
        {"authorization": "provisional"},
        {"state": "invalid"},
        {"state": "invalid", "environment": "sandbox"},
        {"state": "quarantined"},
        {"state": "opted_out"},
        {"environment": "sandbox"},
        {"authorization": "denied"},
        {"authorization": "denied", "state": "opted_out"},
    ]
    with database.transaction() as transaction:
        app_id = add_app(transaction, "production")
        for number, columns in enumerate(rows):
            add_device(transaction, app_id, number, **columns)
        alert = count_audience(transaction, app_id, Segment.all(), PushType.ALERT)
        assert alert.total == 3
        assert alert.excluded == {"invalid": 2, "opted_out": 2, "quarantined": 1, "no_credential": 1, "denied": 1}
        assert alert.segment == len(rows)
        background = count_audience(transaction, app_id, Segment.all(), PushType.BACKGROUND)
        assert background.total == 4
        assert "denied" not in background.excluded
        for push_type, count in ((PushType.ALERT, alert), (PushType.BACKGROUND, background)):
            found = transaction.rows(sa.select(devices.c.id).where(reachable(push_type)))
            assert len(found) == count.total


def test_not_sent_leaves_out_those_whom_apns_accepted_only(database: Database, sender: Any) -> None:
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        ids = add_devices(transaction, app_id, 4)
    sender.campaigns.enqueue(APP, key="first", payload=PAYLOAD)
    campaign_id = start(database, "first")
    with database.transaction() as transaction:
        add_delivery(transaction, campaign_id, ids[0], "sent", status=200)
        add_delivery(transaction, campaign_id, ids[1], "rejected", status=400, reason="BadDeviceToken")
        add_delivery(transaction, campaign_id, ids[2], "cancelled", reason="Cancelled")
        statement = sa.select(devices.c.id).where(compile_segment(Segment.not_sent("first"), app_id))
        assert {row["id"] for row in transaction.rows(statement)} == set(ids[1:])
