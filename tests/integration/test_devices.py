"""What an application says of its devices, on a real PostgreSQL."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from sender import Segment, Sender
from sender.errors import ConflictError, InvalidInputError, InvalidTokenError, NotFoundError
from sender.model import Change, ChangeKind, Environment
from sender.policy.states import DeviceState
from sender.store import apps
from sender.store.database import Database

APP = "com.example.news"
TOKEN = "ab" * 32
OTHER = "cd" * 32


@pytest.fixture(autouse=True)
def app(database: Database) -> None:
    with database.transaction() as transaction:
        apps.add(transaction, APP)


def kinds(sender: Sender, **only: Any) -> list[ChangeKind]:
    return [change.kind for change in sender.changelog.read(**only)]


def put(database: Database, assignments: str, token: str = TOKEN) -> None:
    with database.transaction() as transaction:
        transaction.execute(f"UPDATE {{s}}.devices SET {assignments} WHERE token = %s", [token])


def test_a_new_device_is_registered_with_everything_that_was_told(sender: Sender) -> None:
    told = sender.devices.register(
        APP,
        TOKEN.upper(),
        user="u-42",
        environment="sandbox",
        locale="fr_FR",
        timezone="Europe/Paris",
        attributes={"plan": "pro", "none": None},
        authorization="provisional",
    )
    device = sender.devices.show(TOKEN[:8])
    assert told.created
    assert told.changes == (ChangeKind.REGISTERED,)
    assert (device.token, device.user, device.environment) == (TOKEN, "u-42", Environment.SANDBOX)
    assert (device.locale, device.timezone, device.attributes) == ("fr-FR", "Europe/Paris", {"plan": "pro"})
    assert device.authorization == "provisional"
    assert device.registered_at is not None
    assert TOKEN not in repr(device)


def test_registering_again_refreshes_and_logs_nothing(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN, user="u", attributes={"plan": "pro", "age": 7})
    before = sender.devices.show(TOKEN)
    again = sender.devices.register(APP, TOKEN, attributes={"plan": "free", "age": None})
    after = sender.devices.show(TOKEN)
    assert not again.created
    assert again.changes == ()
    assert after.user == "u"
    assert after.attributes == {"plan": "free"}
    assert before.registered_at is not None
    assert after.registered_at is not None
    assert after.registered_at > before.registered_at
    assert kinds(sender) == [ChangeKind.REGISTERED]


@pytest.mark.parametrize("state", ["invalid", "quarantined"])
def test_registering_revives(sender: Sender, database: Database, state: str) -> None:
    sender.devices.register(APP, TOKEN)
    put(database, f"state = '{state}', state_reason = 'x', state_campaign_id = 1")
    assert sender.devices.register(APP, TOKEN).changes == (ChangeKind.REVIVED,)
    device = sender.devices.show(TOKEN)
    assert (device.state, device.state_reason) == (DeviceState.ACTIVE, None)


def test_an_old_registration_that_arrives_late_revives_nothing(sender: Sender, database: Database) -> None:
    sender.devices.register(APP, TOKEN)
    put(database, "state = 'invalid'")
    late = sender.devices.register(APP, TOKEN, registered_at=datetime(2020, 1, 1, tzinfo=UTC))
    assert late.state is DeviceState.INVALID
    registered_at = sender.devices.show(TOKEN).registered_at
    assert registered_at is not None
    assert registered_at.year > 2020


def test_registering_ends_a_quarantine_but_not_a_blocklisting(sender: Sender, database: Database) -> None:
    sender.devices.register(APP, TOKEN)
    put(database, "state = 'quarantined', blocklisted_until = now() + interval '1 hour', blocklisted_times = 2")
    assert sender.devices.register(APP, TOKEN).state is DeviceState.BLOCKLISTED


def test_an_opted_out_device_stays_so_at_every_launch_until_the_user_opts_in(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN, user="u")
    assert sender.devices.opt_out(APP, TOKEN) == 1
    assert sender.devices.opt_out(APP, TOKEN) == 0
    assert sender.devices.register(APP, TOKEN).state is DeviceState.OPTED_OUT
    assert not sender.devices.unregister(APP, TOKEN)
    assert sender.devices.opt_in(APP, user="u") == 1
    assert sender.devices.show(TOKEN).state is DeviceState.ACTIVE
    assert kinds(sender)[1:] == [ChangeKind.OPTED_OUT, ChangeKind.OPTED_IN]


def test_a_token_that_moves_is_in_both_users_changelogs(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN, user="first")
    sender.devices.register(APP, TOKEN, user="second")
    old = sender.changelog.read(user="first").changes[-1]
    new = sender.changelog.read(user="second").changes[-1]
    for change in (old, new):
        assert change.kind is ChangeKind.MOVED
        assert (change.old, change.new) == ({"user": "first"}, {"user": "second"})


def test_logging_out_leaves_a_device_that_is_nobodys(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN, user="u")
    sender.devices.register(APP, TOKEN, user=None)
    assert sender.devices.show(TOKEN).user is None
    assert sender.changelog.read(user="u").changes[-1].new == {"user": None}


def test_a_rotated_token_keeps_its_device(sender: Sender) -> None:
    first = sender.devices.register(APP, TOKEN, user="u", attributes={"plan": "pro"})
    second = sender.devices.register(APP, OTHER, replaces=TOKEN)
    assert second.device_id == first.device_id
    assert second.changes == (ChangeKind.ROTATED,)
    assert sender.devices.show(OTHER).attributes == {"plan": "pro"}
    assert sender.devices.find(TOKEN) == []
    (change,) = sender.changelog.read(user="u").changes[1:]
    assert (change.old, change.new) == ({"token": "abababab…"}, {"token": "cdcdcdcd…"})


def test_a_rotation_to_a_token_that_is_known_ends_the_former_one(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN)
    sender.devices.register(APP, OTHER)
    sender.devices.register(APP, OTHER, replaces=TOKEN)
    former = sender.devices.show(TOKEN)
    assert (former.state, former.state_reason) == (DeviceState.INVALID, "rotated")
    assert sender.devices.show(OTHER).state is DeviceState.ACTIVE


def test_an_unknown_former_token_does_no_harm(sender: Sender) -> None:
    assert sender.devices.register(APP, TOKEN, replaces=OTHER).created
    assert not sender.devices.register(APP, TOKEN, replaces=TOKEN).created


def test_a_change_of_environment_is_logged(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN)
    assert sender.devices.register(APP, TOKEN, environment="sandbox").changes == (ChangeKind.ENVIRONMENT_CHANGED,)
    assert sender.devices.register(APP, TOKEN).changes == ()
    assert sender.devices.show(TOKEN).environment == "sandbox"


def test_unregistering_makes_invalid_and_says_whether_it_did(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN)
    assert sender.devices.unregister(APP, TOKEN)
    assert not sender.devices.unregister(APP, TOKEN)
    assert not sender.devices.unregister(APP, OTHER)
    assert sender.devices.show(TOKEN).state_reason == "unregistered"


def test_authorization_is_noted_without_a_changelog_row(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN)
    assert sender.devices.set_authorization(APP, TOKEN, "denied")
    assert not sender.devices.set_authorization(APP, TOKEN, "denied")
    assert not sender.devices.show(TOKEN).pushable
    assert kinds(sender) == [ChangeKind.REGISTERED]


def test_a_failed_registration_is_in_the_users_changelog_without_tokens(sender: Sender) -> None:
    sender.devices.registration_failed(APP, "u", f"no valid aps-environment entitlement {TOKEN}")
    (change,) = sender.changelog.read(user="u")
    assert change.kind is ChangeKind.REGISTRATION_FAILED
    assert change.reason == "no valid aps-environment entitlement abababab…"


def test_all_faults_of_a_registration_are_told_at_once(sender: Sender) -> None:
    with pytest.raises(InvalidInputError) as caught:
        sender.devices.register(
            APP,
            TOKEN,
            environment="test",
            locale="?",
            timezone="Mars",
            user="",
            attributes={"": 1},
            authorization="maybe",
            registered_at=datetime(2020, 1, 1),
            last_seen_at=datetime.now(UTC) + timedelta(days=3),
        )
    assert len(caught.value.faults) == 8
    with pytest.raises(InvalidTokenError, match="odd"):
        sender.devices.register(APP, "abc")
    with pytest.raises(NotFoundError, match="apps add"):
        sender.devices.register("com.example.unknown", TOKEN)
    assert kinds(sender) == []


def test_opting_out_what_is_not_known_is_an_error(sender: Sender) -> None:
    for which in ({"token": TOKEN}, {"user": "nobody"}):
        with pytest.raises(NotFoundError):
            sender.devices.opt_out(APP, **which)
    with pytest.raises(InvalidInputError, match="one of the two"):
        sender.devices.opt_out(APP)


def test_registering_joins_the_callers_transaction(sender: Sender, postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        sender.devices.register(APP, TOKEN, connection=connection)
        connection.rollback()
    assert sender.devices.find(TOKEN) == []
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        sender.devices.register(APP, TOKEN, replaces=OTHER, connection=connection)
    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(postgres_url))
    with engine.begin() as alchemy:
        sender.devices.register(APP, OTHER, replaces=TOKEN, connection=alchemy)
    engine.dispose()
    assert sender.devices.show(OTHER).state is DeviceState.ACTIVE


def test_many_registrations_of_one_token_at_once_leave_one_device(sender: Sender) -> None:
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda n: sender.devices.register(APP, TOKEN, user=f"u{n % 3}"), range(30)))
    assert sum(each.created for each in done) == 1
    assert len({each.device_id for each in done}) == 1


def test_rotations_to_one_token_at_once_do_not_fail(sender: Sender) -> None:
    olds = [f"{n:064x}" for n in range(1, 9)]
    for old in olds:
        sender.devices.register(APP, old)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda old: sender.devices.register(APP, TOKEN, replaces=old), olds))
    assert sender.devices.show(TOKEN).state is DeviceState.ACTIVE
    assert sender.devices.count(APP)[DeviceState.INVALID] == 7


def test_a_device_is_found_by_the_beginning_of_its_token(sender: Sender) -> None:
    sender.devices.register(APP, "abcd" + "0" * 60)
    sender.devices.register(APP, "abcd" + "f" * 60)
    assert len(sender.devices.find("ABCD")) == 2
    assert sender.devices.show("abcdf").token.endswith("f")
    with pytest.raises(ConflictError, match="more of the token"):
        sender.devices.show("abcd")
    with pytest.raises(NotFoundError):
        sender.devices.show("abce")


def test_devices_are_counted_by_state_and_segment(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN, attributes={"plan": "pro"})
    sender.devices.register(APP, OTHER, attributes={"plan": "free"})
    sender.devices.unregister(APP, OTHER)
    counts = sender.devices.count(APP)
    assert (counts[DeviceState.ACTIVE], counts[DeviceState.INVALID], len(counts)) == (1, 1, len(DeviceState))
    assert sender.devices.count(APP, Segment.where(plan="pro"))[DeviceState.INVALID] == 0


def test_an_export_streams_what_a_segment_and_a_state_say(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN, attributes={"plan": "pro"})
    sender.devices.register(APP, OTHER)
    sender.devices.unregister(APP, OTHER)
    with sender.devices.export(APP) as devices:
        assert [device.token for device in devices] == [TOKEN, OTHER]
    with sender.devices.export(APP, Segment.where(plan="pro"), state="active") as devices:
        assert [device.token for device in devices] == [TOKEN]


def test_a_user_is_shown_with_devices_deliveries_and_changelog(sender: Sender, database: Database) -> None:
    with database.transaction() as transaction:
        apps.add(transaction, "com.example.other")
    registered = sender.devices.register(APP, TOKEN, user="u")
    sender.devices.register("com.example.other", OTHER, user="u")
    sender.devices.unregister("com.example.other", OTHER)
    with database.transaction() as transaction:
        transaction.execute("CREATE TABLE {s}.deliveries_test PARTITION OF {s}.deliveries DEFAULT")
        transaction.execute(
            "INSERT INTO {s}.campaigns (app_id, key, content, payload, push_type, priority, segment, batch_size, "
            "expires_in, grace, started_on) SELECT id, 'spring', '{}', '', 'alert', 10, '{}', 500, 0, 0, '2026-07-26' "
            "FROM {s}.apps WHERE bundle_id = %s",
            [APP],
        )
        transaction.execute(
            "INSERT INTO {s}.deliveries (campaign_started_on, campaign_id, device_id, status, outcome) "
            "SELECT '2026-07-26', id, %s, 200, 'sent' FROM {s}.campaigns",
            [registered.device_id],
        )
    user = sender.users.show("u")
    assert [device.app for device in user.devices] == [APP, "com.example.other"]
    assert user.pushable_apps == (APP,)
    assert [(each.campaign, each.outcome, each.status) for each in user.deliveries] == [("spring", "sent", 200)]
    assert [change.kind for change in user.changes][-1] is ChangeKind.UNREGISTERED
    with pytest.raises(NotFoundError):
        sender.users.show("nobody")


def test_a_change_hides_its_token_from_logs(sender: Sender) -> None:
    sender.devices.register(APP, TOKEN)
    (change,) = sender.changelog.read()
    assert isinstance(change, Change)
    assert change.token == TOKEN
    assert TOKEN not in repr(change)
