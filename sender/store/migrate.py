"""Bring the schema to this version's tables, or say how far away it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psycopg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from sender.errors import ConflictError, DatabaseUnavailableError
from sender.store import partitions
from sender.store.database import Transaction, driver_connection, normalise_url
from sender.store.outages import no_connection

OLDEST_SERVER = 140000
_LOCK = 0x617073  # one migration at a time: a transaction-level advisory lock


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationStatus:
    """Where a schema stands: `current` is None when it is empty, `known` is False when newer code made it."""

    current: str | None
    head: str
    known: bool

    @property
    def up_to_date(self) -> bool:
        return self.current == self.head


def migrate(url: str, schema: str) -> MigrationStatus:
    """Create or upgrade the schema. Safe to run from several hosts at once. Returns the status before.

    Raises `ConflictError` when the schema was made by a newer version of this package.
    """
    engine = _engine(url)
    try:
        with engine.connect() as connection, connection.begin():
            _check_server(connection)
            connection.execute(
                sa.text("SELECT pg_advisory_xact_lock(:key, hashtext(:schema))"), {"key": _LOCK, "schema": schema}
            )
            if not connection.execute(sa.text("SELECT to_regnamespace(quote_ident(:s))"), {"s": schema}).scalar():
                connection.execute(sa.schema.CreateSchema(schema))
            before = _status(connection, schema)
            if before.current is not None and not before.known:
                raise ConflictError(
                    f"schema {schema!r} is at {before.current}, which this version does not know: upgrade "
                    "apns-campaign-sender, or point SENDER_DATABASE_SCHEMA at another schema"
                )
            connection.execute(sa.text("SELECT set_config('search_path', :path, true)"), {"path": _quoted(schema)})
            config = _config(schema)
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            partitions.ensure_ahead(Transaction(driver_connection(connection), schema))
            return before
    except sa.exc.OperationalError as error:
        raise _unavailable(error) from None
    finally:
        engine.dispose()


def status(url: str, schema: str) -> MigrationStatus:
    """Where the schema stands; changes nothing."""
    engine = _engine(url)
    try:
        with engine.connect() as connection:
            _check_server(connection)
            return _status(connection, schema)
    except sa.exc.OperationalError as error:
        raise _unavailable(error) from None
    finally:
        engine.dispose()


def _status(connection: sa.Connection, schema: str) -> MigrationStatus:
    script = ScriptDirectory.from_config(_config(schema))
    context = MigrationContext.configure(connection, opts={"version_table_schema": schema})
    current = context.get_current_revision()
    head = script.get_current_head() or ""
    known = current is None or current in {revision.revision for revision in script.walk_revisions()}
    return MigrationStatus(current=current, head=head, known=known)


def _config(schema: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["schema"] = schema
    return config


def _engine(url: str) -> sa.Engine:
    return sa.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(
            normalise_url(url),
            connect_timeout=10,
            application_name="sender migrate",
            prepare_threshold=None,  # PgBouncer may be in between: see `Database`
        ),
        poolclass=sa.pool.NullPool,
    )


def _check_server(connection: sa.Connection) -> None:
    version = int(connection.execute(sa.text("SHOW server_version_num")).scalar_one())
    if version < OLDEST_SERVER:
        raise DatabaseUnavailableError(f"PostgreSQL {version // 10000} is too old: 14 or newer is needed")


def _quoted(schema: str) -> str:
    return '"' + schema.replace('"', '""') + '"'


def _unavailable(error: sa.exc.OperationalError) -> DatabaseUnavailableError:
    return DatabaseUnavailableError(no_connection(error.orig or error))
