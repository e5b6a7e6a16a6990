"""The migrations add up to the tables, land in one schema, and need nothing but a role that may create it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy.dialects.postgresql.base import ischema_names

from sender.errors import ConflictError, DatabaseUnavailableError
from sender.store.database import Database
from sender.store.migrate import migrate, status
from sender.store.tables import Xid8, metadata


@pytest.fixture
def schema(postgres_url: str) -> Iterator[str]:
    """The name of a schema that does not exist yet; dropped afterwards."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


def objects(url: str) -> set[tuple[str, str]]:
    """(schema, name) of every relation, function and type that is not the server's own."""
    statement = """
        SELECT n.nspname, o.name FROM (
            SELECT relnamespace AS namespace, relname AS name FROM pg_class
            UNION ALL SELECT pronamespace, proname FROM pg_proc
            UNION ALL SELECT typnamespace, typname FROM pg_type
        ) o JOIN pg_namespace n ON n.oid = o.namespace
        WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema'
    """
    with psycopg.connect(url) as connection:
        return {(schema, name) for schema, name in connection.execute(statement)}


def differences(url: str, schema: str) -> list[Any]:
    """What Alembic would change to get from the migrated schema to the definitions."""
    ischema_names["xid8"] = Xid8  # type: ignore[assignment]

    def wanted(thing: Any, name: str | None, kind: str, reflected: bool, _: Any) -> bool:
        table = thing.name if kind == "table" else thing.table.name
        partition = table.startswith(("changelog_", "deliveries_"))
        return not (reflected and (partition or table == "alembic_version"))

    engine = sa.create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT set_config('search_path', :schema, false)"), {"schema": schema})
        context = MigrationContext.configure(
            connection, opts={"include_object": wanted, "compare_type": True, "compare_server_default": True}
        )
        found = compare_metadata(context, metadata)
    engine.dispose()
    return found


def test_the_migrations_add_up_to_the_tables(database: Database) -> None:
    assert differences(database.url, database.schema) == []


def test_a_column_that_no_migration_makes_would_be_noticed(database: Database) -> None:
    with database.transaction() as transaction:
        transaction.execute("ALTER TABLE {s}.devices DROP COLUMN locale")
        transaction.execute("DROP INDEX {s}.batches_campaign_id_idx")
        transaction.execute("ALTER TABLE {s}.retries ALTER COLUMN attempts TYPE bigint")
    found = str(differences(database.url, database.schema))
    assert "locale" in found and "batches_campaign_id_idx" in found and "attempts" in found


def test_everything_lands_in_one_schema(postgres_url: str, schema: str) -> None:
    before = objects(postgres_url)
    migrate(postgres_url, schema)
    made = {(where, name) for where, name in objects(postgres_url) - before if not where.startswith("test_")}
    assert made == set()
    assert (schema, "alembic_version") in objects(postgres_url)
    assert (schema, "devices") in objects(postgres_url)


def test_the_role_that_migrates_is_no_superuser_and_makes_no_extension(postgres_url: str, schema: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        role = connection.execute(
            "SELECT rolsuper, rolcreaterole FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
        before = connection.execute("SELECT extname FROM pg_extension").fetchall()
    assert role == (False, False)
    migrate(postgres_url, schema)
    with psycopg.connect(postgres_url) as connection:
        assert connection.execute("SELECT extname FROM pg_extension").fetchall() == before


def test_migrating_twice_changes_nothing(postgres_url: str, schema: str) -> None:
    first = migrate(postgres_url, schema)
    second = migrate(postgres_url, schema)
    assert (first.current, second.current) == (None, second.head)
    assert status(postgres_url, schema).up_to_date


def test_a_schema_of_a_newer_version_is_refused_and_left_alone(database: Database) -> None:
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.alembic_version SET version_num = '9999'")
    with pytest.raises(ConflictError, match=r"9999.*upgrade"):
        migrate(database.url, database.schema)
    assert not status(database.url, database.schema).known


def test_a_database_that_is_not_migrated_says_what_to_run(postgres_url: str, schema: str) -> None:
    database = Database(postgres_url, schema=schema)
    with pytest.raises(DatabaseUnavailableError, match="sender migrate"), database.transaction() as transaction:
        transaction.execute("SELECT 1 FROM {s}.devices")
    database.close()


def test_a_schema_whose_name_needs_quotes_works(postgres_url: str) -> None:
    name = f"test_{uuid.uuid4().hex[:8]} Mixed-Case"
    try:
        migrate(postgres_url, name)
        assert status(postgres_url, name).up_to_date
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))
