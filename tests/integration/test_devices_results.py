"""What APNs's answers do to devices, on a real PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from sender.model import ChangeKind
from sender.store import apps, changelog, devices
from sender.store.changelog import Filter
from sender.store.database import Database
from sender.store.devices import Gone, InvalidateResult, Rested, Suspect, Throttled

REGISTERED = datetime(2026, 7, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPRING, SUMMER = 101, 102  # campaigns


@pytest.fixture
def ids(database: Database) -> list[int]:
    """Three active devices."""
    with database.transaction() as transaction:
        app_id = apps.add(transaction, "com.example.news")
        return [
            id
            for (id,) in transaction.execute(
                "INSERT INTO {s}.devices (app_id, token, environment, registered_at) "
                "SELECT %s, 'ab0' || n, 'production', %s FROM generate_series(1, 3) n RETURNING id",
                [app_id, REGISTERED],
            )
        ]


def gone(device_id: int, n: int = 1, **changes: Any) -> Gone:
    hit = Gone(
        device_id=device_id,
        token=f"ab0{n}",
        registered_at=REGISTERED,
        timestamp=REGISTERED + HOUR,
        loaded_at=REGISTERED + 2 * HOUR,
        reason="Unregistered",
        apns_id=uuid4(),
    )
    return replace(hit, **changes)


def invalidate(database: Database, *hits: Gone, campaign: int = SPRING) -> InvalidateResult:
    with database.transaction() as transaction:
        return devices.invalidate(transaction, hits, campaign)


def column(database: Database, name: str, device_id: int) -> Any:
    with database.transaction() as transaction:
        row = transaction.execute(f"SELECT {name} FROM {{s}}.devices WHERE id = %s", [device_id]).fetchone()
        assert row is not None
        return row[0]


def put(database: Database, device_id: int, assignments: str) -> None:
    with database.transaction() as transaction:
        transaction.execute(f"UPDATE {{s}}.devices SET {assignments} WHERE id = %s", [device_id])


def kinds(database: Database) -> list[ChangeKind]:
    with database.transaction() as transaction:
        return [row.kind for row in changelog.latest(transaction, limit=100, only=Filter())]


def test_a_410_newer_than_the_registration_invalidates(database: Database, ids: list[int]) -> None:
    hit = gone(ids[0])
    assert invalidate(database, hit, gone(ids[1], 2)) == InvalidateResult(invalidated=2, kept=0)
    assert column(database, "state", ids[0]) == "invalid"
    with database.transaction() as transaction:
        (row,) = changelog.latest(transaction, limit=9, only=Filter(device_ids=(ids[0],)))
    assert (row.kind, row.reason, row.apns_id) == (ChangeKind.INVALIDATED, "Unregistered", hit.apns_id)
    assert (row.old, row.new) == ({"state": "active"}, {"state": "invalid"})


def test_a_token_registered_after_the_410_stays_active(database: Database, ids: list[int]) -> None:
    result = invalidate(database, gone(ids[0], timestamp=REGISTERED - HOUR))
    assert result == InvalidateResult(invalidated=0, kept=1)
    assert column(database, "state", ids[0]) == "active"
    assert kinds(database) == [ChangeKind.KEPT]


def test_the_second_such_410_from_another_campaign_invalidates_anyway(database: Database, ids: list[int]) -> None:
    stale = gone(ids[0], timestamp=REGISTERED - HOUR)
    assert invalidate(database, stale).kept == 1
    assert invalidate(database, stale).kept == 1  # the same campaign again
    assert invalidate(database, stale, campaign=SUMMER).invalidated == 1
    assert column(database, "stale_410_campaign_id", ids[0]) is None


def test_a_token_registered_while_the_push_was_out_stays_active(database: Database, ids: list[int]) -> None:
    put(database, ids[0], "registered_at = registered_at + interval '30 minutes'")
    assert invalidate(database, gone(ids[0])).kept == 1


def test_410s_of_two_campaigns_that_were_out_while_it_registered_again_do_not_add_up(
    database: Database, ids: list[int]
) -> None:
    put(database, ids[0], "registered_at = registered_at + interval '30 minutes'")
    for campaign in (SPRING, SUMMER):
        assert invalidate(database, gone(ids[0]), campaign=campaign) == InvalidateResult(invalidated=0, kept=1)
    assert column(database, "state", ids[0]) == "active"
    assert column(database, "stale_410_campaign_id", ids[0]) is None


def test_a_token_that_was_rotated_meanwhile_is_left_alone(database: Database, ids: list[int]) -> None:
    put(database, ids[0], "token = 'ffff'")
    assert invalidate(database, gone(ids[0])) == InvalidateResult(invalidated=0, kept=0)
    assert kinds(database) == []


def test_an_unknown_registration_is_older_than_any_410(database: Database, ids: list[int]) -> None:
    put(database, ids[0], "registered_at = NULL")
    old = gone(ids[0], registered_at=None, timestamp=datetime(2015, 1, 1, tzinfo=UTC))
    assert invalidate(database, old).invalidated == 1


def test_without_a_timestamp_the_instant_of_loading_counts(database: Database, ids: list[int]) -> None:
    assert invalidate(database, gone(ids[0], timestamp=None)).invalidated == 1
    assert invalidate(database, gone(ids[1], 2, timestamp=None, loaded_at=REGISTERED - HOUR)).kept == 1


@pytest.mark.parametrize("state", ["invalid", "opted_out"])
def test_what_is_not_pushable_is_not_invalidated_again(database: Database, ids: list[int], state: str) -> None:
    put(database, ids[0], f"state = '{state}'")
    assert invalidate(database, gone(ids[0])) == InvalidateResult(invalidated=0, kept=0)
    assert column(database, "state", ids[0]) == state


def test_a_suspect_token_is_quarantined_once(database: Database, ids: list[int]) -> None:
    hit = Suspect(device_id=ids[0], token="ab01", environment="production", reason="BadDeviceToken", apns_id=uuid4())
    for expected in (1, 0):
        with database.transaction() as transaction:
            assert devices.quarantine(transaction, [hit, replace(hit, token="ffff")][:1], SPRING) == expected
    with database.transaction() as transaction:
        other = replace(hit, device_id=ids[1], token="ffff")
        assert devices.quarantine(transaction, [other], SPRING) == 0
    assert (column(database, "state", ids[0]), column(database, "state_reason", ids[0])) == (
        "quarantined",
        "BadDeviceToken",
    )
    assert kinds(database) == [ChangeKind.QUARANTINED]


def test_a_suspect_token_that_moved_to_the_other_environment_meanwhile_is_left_alone(
    database: Database, ids: list[int]
) -> None:
    hit = Suspect(device_id=ids[0], token="ab01", environment="production", reason="BadDeviceToken", apns_id=uuid4())
    put(database, ids[0], "environment = 'sandbox'")
    with database.transaction() as transaction:
        assert devices.quarantine(transaction, [hit], SPRING) == 0
    assert column(database, "state", ids[0]) == "active"


def test_a_throttled_device_rests_longer_each_time_and_a_success_ends_it(database: Database, ids: list[int]) -> None:
    first = Throttled(device_id=ids[0], until=REGISTERED + HOUR, times=1, apns_id=uuid4())
    second = replace(first, until=REGISTERED + 2 * HOUR, times=2)
    with database.transaction() as transaction:
        assert devices.blocklist(transaction, [first], SPRING) == 1
        assert devices.blocklist(transaction, [first], SUMMER) == 0  # at the same moment: one step
        assert devices.blocklist(transaction, [second], SUMMER) == 1
    assert column(database, "blocklisted_until", ids[0]) == REGISTERED + 2 * HOUR
    rested = Rested(device_id=ids[0], times=2)
    with database.transaction() as transaction:
        assert devices.clear_blocklist(transaction, [replace(rested, times=1)], SUMMER) == 0  # throttled again since
        assert devices.clear_blocklist(transaction, [rested], SUMMER) == 1
        assert devices.clear_blocklist(transaction, [rested], SUMMER) == 0
    assert column(database, "(state, blocklisted_times, blocklisted_until)::text", ids[0]) == "(active,0,)"
    assert kinds(database) == [ChangeKind.BLOCKLISTED, ChangeKind.BLOCKLISTED, ChangeKind.UNBLOCKED]


def test_a_success_does_not_end_a_quarantine(database: Database, ids: list[int]) -> None:
    put(database, ids[0], "state = 'quarantined', blocklisted_times = 1")
    with database.transaction() as transaction:
        assert devices.clear_blocklist(transaction, [Rested(device_id=ids[0], times=1)], SPRING) == 0
    assert column(database, "state", ids[0]) == "quarantined"


def test_nothing_to_do_costs_nothing(database: Database) -> None:
    with database.transaction():
        pass  # the first one looks at the schema's version
    with database.transaction() as transaction:
        assert devices.invalidate(transaction, [], SPRING) == InvalidateResult(invalidated=0, kept=0)
        assert devices.quarantine(transaction, [], SPRING) == 0
        assert devices.blocklist(transaction, [], SPRING) == 0
        assert devices.clear_blocklist(transaction, [], SPRING) == 0
        assert transaction.connection.info.transaction_status.name == "IDLE"
