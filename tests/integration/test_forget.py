"""Forgetting a person: afterwards nothing in the schema names them or holds one of their tokens."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest
from psycopg import sql

from sender import Alert, Payload, Segment
from sender.client import Sender
from sender.errors import InvalidInputError, NotFoundError
from sender.model import Actor
from sender.settings import Settings
from sender.store.database import Database
from tests.integration.engine import BUNDLE, Engine, engine_on, token_of

USER = "anna-4711@example.com"


@pytest.fixture
def engine(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    with engine_on(settings, database, sender) as engine:
        yield engine


def found_in(engine: Engine, *needles: str) -> list[tuple[str, str]]:
    """Every (table, needle) of the schema where some row, as text, holds a needle."""
    found = []
    with engine.database.transaction() as transaction:
        tables = transaction.execute(
            "SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
            "WHERE n.nspname = %s AND c.relkind IN ('r', 'p')",
            (transaction.schema,),
        ).fetchall()
        assert len(tables) > 15
        for (table,) in tables:
            for needle in needles:
                query = sql.SQL("SELECT count(*) FROM {}.{} AS t WHERE t::text LIKE %s OR t::text LIKE %s").format(
                    sql.Identifier(transaction.schema), sql.Identifier(table)
                )
                as_bytes = needle.encode().hex()
                (count,) = transaction.connection.execute(query, (f"%{needle}%", f"%{as_bytes}%")).fetchone() or (0,)
                found += [(table, needle)] * count
    return found


def payload(text: str) -> Payload:
    return Payload(alert=Alert(title="Hello", body=text))


def fill(engine: Engine) -> list[str]:
    """A person with everything that can be known of one; their tokens."""
    register = engine.sender.devices.register
    old, new, other, theirs = token_of(11), token_of(12), token_of(13), token_of(14)
    register(BUNDLE, old, user=USER, locale="fr-FR", attributes={"mail": USER, "name": "Anna"})
    register(BUNDLE, new, user=USER, replaces=old)
    register(BUNDLE, other, user=USER, environment="sandbox", attributes={"nick": "annie"})
    register(BUNDLE, theirs, user="bob")
    engine.sender.devices.registration_failed(BUNDLE, USER, f"no token for {USER}")
    send = engine.sender.campaigns.enqueue
    send(BUNDLE, key=f"welcome-{USER}", payload=payload(f"Welcome {USER}"), audience=Segment.users(USER), rate=None)
    send(
        BUNDLE,
        key="both",
        payload=payload("To both"),
        audience=Segment.users("bob", USER) & ~Segment.not_sent(f"welcome-{USER}"),
        rate=None,
    )
    engine.sender.campaigns.create_draft(
        BUNDLE, key="draft", payload=payload("Dear Anna"), audience=Segment.users(USER) & Segment.language("fr")
    )
    engine.run(rounds=5)
    with engine.database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.staged SELECT c.id, d.environment, d.id, d.token, NULL, now(), 'Unregistered', %s "
            "FROM {s}.devices d, {s}.campaigns c WHERE c.key = 'both' AND d.token = %s",
            (uuid4(), new),
        )
        name = f"import_{int(datetime.now(UTC).timestamp())}_0123abcd"
        transaction.execute(f"CREATE TABLE {{s}}.{name} (line bigint, token text, external_user text)")
        transaction.execute(f"INSERT INTO {{s}}.{name} VALUES (1, 'ffff', %s), (2, %s, 'bob')", (USER, other))
        transaction.execute(f"CREATE TABLE {{s}}.{name}_sorted (n bigint, token text, user_id bigint)")
        transaction.execute(
            f"INSERT INTO {{s}}.{name}_sorted SELECT 1, 'eeee', id FROM {{s}}.users WHERE external_id = %s", (USER,)
        )
    return [old, new, other]


def test_nothing_of_a_forgotten_person_is_left_in_the_schema(engine: Engine) -> None:
    tokens = fill(engine)
    personal = [USER, "Anna", "annie", *tokens[1:], tokens[0][:8] + "…"]
    assert {needle for _, needle in found_in(engine, *personal)} >= {USER, "Anna", "annie", *tokens[1:]}
    done = engine.sender.users.forget(USER, actor=Actor.OPERATOR)
    assert (done.known, done.devices, done.campaigns, done.messages) == (True, 2, 3, 2)
    assert found_in(engine, *personal) == []
    with pytest.raises(NotFoundError):
        engine.sender.users.show(USER)


def test_forgetting_leaves_one_audit_row_and_everybody_else_as_they_are(engine: Engine) -> None:
    fill(engine)
    before = engine.sender.campaigns.show("both")
    engine.sender.devices.forget_user(USER)
    (audit,) = [change for change in engine.sender.changelog.latest(1000) if change.kind == "forgotten"]
    assert (audit.user, audit.token, audit.new) == (None, None, {"devices": 2, "campaigns": 3})
    assert engine.sender.users.show("bob").devices[0].token == token_of(14)
    after = engine.sender.campaigns.show("both")
    assert (after.sent, after.audience) == (before.sent, before.audience)
    row = engine.sender.campaigns.load("both")
    assert row.content["payload"]["aps"]["alert"]["body"] == "To both"
    assert row.segment["and"]
    assert "bob" in str(row.segment)


def test_forgetting_again_finds_nothing_and_does_no_harm(engine: Engine) -> None:
    fill(engine)
    engine.sender.users.forget(USER)
    again = engine.sender.users.forget(USER)
    assert not again.anything
    assert len([change for change in engine.sender.changelog.latest(1000) if change.kind == "forgotten"]) == 1


def test_a_dry_run_erases_nothing_and_counts_the_same(engine: Engine) -> None:
    fill(engine)
    rehearsed = engine.sender.users.forget(USER, dry_run=True)
    assert engine.sender.users.show(USER).devices
    assert engine.sender.users.forget(USER) == rehearsed


def test_a_person_who_is_forgotten_while_a_campaign_runs_is_skipped_in_it(engine: Engine) -> None:
    engine.add_devices(5)
    engine.sender.devices.register(BUNDLE, token_of(99), user=USER)
    engine.enqueue("running")
    engine.start()
    engine.sender.users.forget(USER)
    engine.run()
    report = engine.report("running")
    assert (report.state, report.sent, report.skipped, report.by_reason) == ("completed", 5, 1, {"Moved": 1})
    assert token_of(99) not in engine.received


def test_a_person_who_registers_after_being_forgotten_is_new(engine: Engine) -> None:
    engine.sender.devices.register(BUNDLE, token_of(1), user=USER)
    engine.sender.users.forget(USER)
    engine.sender.devices.register(BUNDLE, token_of(1), user=USER)
    shown = engine.sender.users.show(USER)
    assert [change.kind for change in shown.changes] == ["registered"]


def test_an_id_that_is_none_is_refused(engine: Engine) -> None:
    for wrong in ("", "x" * 1000, None):
        with pytest.raises(InvalidInputError):
            engine.sender.users.forget(wrong)  # type: ignore[arg-type]
