"""Undo: what a campaign, or a reason in a span of time, did to tokens is put back from the changelog."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sender import InvalidInputError, NotFoundError, Sender
from sender.model import Actor
from sender.store import apps, devices, quarantine, restore
from sender.store.database import Database
from sender.store.devices import Gone, Suspect
from sender.store.quarantine import Which
from sender.store.restore import Place, Scope

APP = "com.example.news"
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """An app, campaigns A and B that are known to have had successes, and what may happen to a device."""

    def __init__(self, database: Database, sender: Sender) -> None:
        self.database, self.sender = database, sender
        with database.transaction() as transaction:
            self.app_id = apps.find(transaction, APP).id if apps.find(transaction, APP) else apps.add(transaction, APP)

    def campaign(self, key: str) -> int:
        with self.database.transaction() as transaction:
            (id,) = transaction.execute(
                "INSERT INTO {s}.campaigns (app_id, key, state, content, payload, push_type, priority, segment, "
                "batch_size, expires_in, grace, started_at) "
                "VALUES (%s, %s, 'running', '{}', '{}', 'alert', 10, '{\"all\": true}', 10, 60, 0, now()) RETURNING id",
                (self.app_id, key),
            ).fetchone() or (0,)
            transaction.execute(
                "INSERT INTO {s}.trials (campaign_id, environment, state, accepted) VALUES (%s, 'production', "
                "'trusted', 100)",
                (id,),
            )
        return int(id)

    def device(self, number: int) -> int:
        """A device that registered long ago."""
        return self.sender.devices.register(APP, f"{number:064x}", registered_at=LONG_AGO).device_id

    def row(self, id: int) -> tuple[str, str | None, int | None]:
        with self.database.transaction() as transaction:
            found = transaction.row("SELECT * FROM {s}.devices WHERE id = %s", (id,)) or {}
        return found["state"], found["state_reason"], found["state_campaign_id"]

    def bad(self, ids: Sequence[int], campaign: int) -> None:
        """BadDeviceToken."""
        with self.database.transaction() as transaction:
            hits = [
                Suspect(device_id=id, token=token, environment="production", reason="BadDeviceToken", apns_id=uuid4())
                for id, token in self.tokens(ids)
            ]
            devices.quarantine(transaction, hits, campaign)

    def gone(self, ids: Sequence[int], campaign: int) -> None:
        """410."""
        with self.database.transaction() as transaction:
            found = transaction.rows(
                "SELECT id, token, registered_at FROM {s}.devices WHERE id = ANY(%s)", (list(ids),)
            )
            now = datetime.now(UTC)
            hits = [
                Gone(
                    device_id=row["id"],
                    token=row["token"],
                    registered_at=row["registered_at"],
                    timestamp=now,
                    loaded_at=now,
                    reason="Unregistered",
                    apns_id=uuid4(),
                )
                for row in found
            ]
            devices.invalidate(transaction, hits, campaign)

    def tokens(self, ids: Sequence[int]) -> list[tuple[int, str]]:
        with self.database.transaction() as transaction:
            return transaction.execute("SELECT id, token FROM {s}.devices WHERE id = ANY(%s)", (list(ids),)).fetchall()

    def register(self, id: int) -> None:
        """The app says that the token is its."""
        self.sender.devices.register(APP, self.tokens([id])[0][1])

    def release(self, id: int) -> None:
        with self.database.transaction() as transaction:
            quarantine.release(transaction, Which(device_ids=(id,)), actor=Actor.OPERATOR)

    def confirm(self, id: int) -> None:
        with self.database.transaction() as transaction:
            quarantine.confirm(transaction, Which(device_ids=(id,)), actor=Actor.OPERATOR)


@pytest.fixture
def world(database: Database, sender: Sender) -> World:
    return World(database, sender)


def test_a_campaign_s_invalidations_and_quarantines_are_put_back_and_recorded(world: World) -> None:
    a = world.campaign("a")
    ids = [world.device(n) for n in range(6)]
    world.bad(ids[:3], a)
    world.gone(ids[3:5], a)
    rehearsed = world.sender.devices.restore(campaign="a", dry_run=True)
    assert (rehearsed.restored, rehearsed.skipped, rehearsed.dry_run) == ({"active": 5}, {}, True)
    assert world.row(ids[0])[0] == "quarantined"
    done = world.sender.devices.restore(campaign="a", actor=Actor.OPERATOR)
    assert (done.restored, done.skipped) == ({"active": 5}, {})
    assert {world.row(id) for id in ids} == {("active", None, None)}
    changes = [change for change in world.sender.changelog.latest(campaign="a") if change.kind == "restored"]
    assert [(change.old, change.new, change.actor) for change in changes[-1:]] == [
        ({"state": "invalid"}, {"state": "active"}, "operator")
    ]
    assert len(changes) == 5


def test_restoring_twice_changes_nothing_the_second_time(world: World) -> None:
    a = world.campaign("a")
    ids = [world.device(n) for n in range(4)]
    world.gone(ids, a)
    world.sender.devices.restore(campaign="a")
    again = world.sender.devices.restore(campaign="a")
    assert (again.restored, again.skipped) == ({}, {"restored": 4})


def test_what_changed_since_is_left_alone_and_counted_with_its_cause(world: World) -> None:
    a, b = world.campaign("a"), world.campaign("b")
    registered, opted_out, elsewhere, released, plain = ids = [world.device(n) for n in range(5)]
    world.bad(ids, a)
    world.register(registered)
    world.sender.devices.opt_out(APP, world.tokens([opted_out])[0][1])
    world.release(elsewhere)
    world.gone([elsewhere], b)
    world.release(released)
    report = world.sender.devices.restore(campaign="a")
    assert report.restored == {"active": 1}
    assert report.skipped == {"revived": 1, "opted_out": 1, "invalidated": 1, "released": 1}
    assert [world.row(id)[0] for id in ids] == ["active", "opted_out", "invalid", "active", "active"]
    assert world.row(plain)[0] == "active"


def test_a_confirmed_invalidation_goes_back_into_the_quarantine_it_came_from(world: World) -> None:
    a, b = world.campaign("a"), None
    id = world.device(1)
    world.bad([id], a)
    b = world.campaign("b")
    world.bad([id], b)
    assert world.row(id) == ("invalid", "BadDeviceToken", b)
    assert world.sender.devices.restore(campaign="b").restored == {"quarantined": 1}
    assert world.row(id) == ("quarantined", "BadDeviceToken", a)
    assert world.sender.devices.restore(campaign="a").restored == {"active": 1}


def test_a_reason_in_a_span_of_time_undoes_both_steps_at_once(world: World) -> None:
    since = datetime.now(UTC) - timedelta(minutes=1)
    a = world.campaign("a")
    ids = [world.device(n) for n in range(3)]
    world.bad(ids, a)
    world.bad(ids[:1], world.campaign("b"))
    world.gone(ids[2:], world.campaign("c"))
    assert (
        world.sender.devices.restore(reason="BadDeviceToken", since=since, until=since + timedelta(seconds=1)).total
        == 0
    )
    report = world.sender.devices.restore(reason="BadDeviceToken", since=since, app=APP)
    assert (report.restored, report.skipped) == ({"active": 2}, {"invalidated": 1})
    assert [world.row(id)[0] for id in ids] == ["active", "active", "invalid"]


def test_a_blocklisting_that_has_not_ended_goes_on_after_a_restore(world: World) -> None:
    a = world.campaign("a")
    id = world.device(1)
    with world.database.transaction() as transaction:
        transaction.execute(
            "UPDATE {s}.devices SET state = 'blocklisted', blocklisted_until = now() + interval '1 hour', "
            "blocklisted_times = 1"
        )
    world.gone([id], a)
    assert world.sender.devices.restore(campaign="a").restored == {"blocklisted": 1}
    assert world.row(id)[0] == "blocklisted"


def test_what_is_not_plainly_meant_is_refused(world: World) -> None:
    now = datetime.now(UTC)
    for wrong in (
        {},
        {"campaign": "a", "reason": "BadDeviceToken"},
        {"reason": "BadDeviceToken"},
        {"campaign": "a", "since": now},
        {"reason": "BadDeviceToken", "since": now.replace(tzinfo=None)},
        {"reason": "BadDeviceToken", "since": now, "until": now},
    ):
        with pytest.raises(InvalidInputError):
            world.sender.devices.restore(**wrong)  # type: ignore[arg-type]
    with pytest.raises(NotFoundError):
        world.sender.devices.restore(campaign="nothing")


def life(chance: Random) -> list[tuple[str, str | None]]:
    """What happens to one device: hits mostly, and what makes them possible or stands in a restore's way. Drawn evenly:
    what matters are pairs and triples, which a search for small examples seldom makes."""
    hits = [(kind, key) for kind in ("bad", "gone") for key in ("a", "b")]
    others = [(kind, None) for kind in ("register", "release", "confirm", "opt_out", "opt_in")]
    return [chance.choice(hits * 3 + others) for _ in range(chance.randint(2, 5))]


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(seed=st.integers(0, 2**32), steps=st.integers(1, 7))
def test_a_restore_after_arbitrary_events_brings_back_exactly_what_it_should(
    world: World, seed: int, steps: int
) -> None:
    """The model: a device goes back by undoing its last change, and the one before, as long as they are campaign a's;
    nothing else of it is touched."""
    chance = Random(seed)
    lives = [life(chance) for _ in range(12)]
    name = uuid4().hex
    campaigns = {key: world.campaign(f"{name}-{key}") for key in ("a", "b")}
    ids = [world.device(uuid4().int) for _ in lives]
    history: dict[int, list[tuple[str, str | None]]] = {id: [("active", None)] for id in ids}
    for id, (event, key) in [(id, event) for id, life in zip(ids, lives, strict=True) for event in life]:
        before = world.row(id)
        match event:
            case "bad" | "gone":
                getattr(world, event)([id], campaigns[key or ""])
            case "opt_out" | "opt_in":
                getattr(world.sender.devices, event)(APP, world.tokens([id])[0][1])
            case _:
                getattr(world, event)(id)
        if world.row(id)[0] != before[0]:
            history[id].append((world.row(id)[0], key))
    expected = {}
    for id, states in history.items():
        left = list(states)
        if left[-1][1] == "a":
            was = left.pop()[0]
            if was == "invalid" and left[-1] == ("quarantined", "a"):
                left.pop()
        expected[id] = left[-1][0]
    restored: Counter[str] = Counter()
    scope = Scope(campaign_id=campaigns["a"])
    place: Place | None = Place()
    while place is not None:
        with world.database.transaction() as transaction:
            end = restore.newest_row(transaction)
            done = restore.step(transaction, scope, place, end=end, actor=Actor.OPERATOR, dry_run=False, most=steps)
        restored.update(done.restored)
        place = done.place
    assert {id: world.row(id)[0] for id in ids} == expected
    changed = [id for id, states in history.items() if expected[id] != states[-1][0]]
    assert restored.total() == len(changed)
