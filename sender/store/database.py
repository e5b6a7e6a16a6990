"""Connections and transactions. Everything runs on psycopg 3; SQLAlchemy only writes the dynamic statements.

SQL in this room names its tables as `{s}.devices`; `{s}` becomes the quoted schema when the statement runs. No session
state is used (no SET, no session locks, no server-side prepared statements by name), so that PgBouncer in transaction
mode works.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import psycopg
import sqlalchemy as sa
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, dict_row
from psycopg_pool import ConnectionPool, PoolTimeout
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from sender.errors import ConfigurationError, DatabaseUnavailableError, SchemaVersionError
from sender.store.outages import first_line, is_of_statement, no_connection, refusal
from sender.store.schema import check as check_schema

_DIALECT = PGDialect_psycopg()
#: Seconds between two attempts to connect while the database is away: the pool alone would double them to minutes.
RECONNECT = 1.0
#: How a connection finds out that its server's host is gone without a word (a failover, a cut cable): in half a minute,
#: where the system would wait for a quarter of an hour. What the URL says of these goes before.
_VANISHED = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 30_000}
#: Seconds since its last use for which a connection is not asked whether it still works: it may break at any moment.
_FRESH = 0.2
Params = Mapping[str, Any] | Sequence[Any] | None


class Transaction:
    """One open transaction. Statements are text with `{s}` for the schema, or SQLAlchemy statements on our tables."""

    def __init__(self, connection: psycopg.Connection[Any], schema: str) -> None:
        self.connection = connection
        self.schema = schema

    def execute(self, statement: str | sa.Executable, params: Params = None) -> psycopg.Cursor[TupleRow]:
        """Run a statement and return its cursor, which yields tuples."""
        text, values = self._render(statement, params)
        return self.connection.execute(text, values)

    def rows(self, statement: str | sa.Executable, params: Params = None) -> list[dict[str, Any]]:
        """Run a statement and return its rows as dictionaries."""
        return dictionaries(self.execute(statement, params))

    def row(self, statement: str | sa.Executable, params: Params = None) -> dict[str, Any] | None:
        """Run a statement and return its first row as a dictionary, or None."""
        text, values = self._render(statement, params)
        with self.connection.cursor(row_factory=dict_row) as cursor:
            cursor.execute(text, values)
            return cursor.fetchone()

    def wait_for_locks(self, length: str) -> None:
        """Have this transaction give up (`BUSY`) when it waits so long for a lock, such as 500ms, instead of holding up
        those behind it."""
        self.connection.execute("SELECT set_config('lock_timeout', %s, true)", (length,))

    @contextmanager
    def stream(self, statement: str | sa.Executable, params: Params = None, *, size: int = 2000) -> Iterator[Any]:
        """A server-side cursor that yields dictionaries, `size` rows a round trip: memory stays flat."""
        text, values = self._render(statement, params)
        with self.connection.cursor(name="sender_stream", row_factory=dict_row) as cursor:
            cursor.itersize = size
            cursor.execute(text, values)
            yield cursor

    def sql(self, text: str) -> str:
        """The text with the schema put in, for COPY and other statements that do not go through `execute`."""
        return qualify(text, self.schema)

    def _render(self, statement: str | sa.Executable, params: Params) -> tuple[str, Params]:
        if isinstance(statement, str):
            return qualify(statement, self.schema), params
        return render(statement, self.schema)


def dictionaries(cursor: psycopg.Cursor[TupleRow]) -> list[dict[str, Any]]:
    """The rows of a cursor as dictionaries."""
    rows = cursor.fetchall()
    names = [column.name for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in rows]


@lru_cache(maxsize=512)
def qualify(text: str, schema: str) -> str:
    """Put the quoted schema in place of `{s}`."""
    return text.replace("{s}", sql.Identifier(schema).as_string(None))


def render(statement: sa.Executable, schema: str) -> tuple[str, dict[str, Any]]:
    """Compile a SQLAlchemy statement on our tables into psycopg's text and parameters."""
    compiled = statement.compile(  # type: ignore[attr-defined]
        dialect=_DIALECT,
        schema_translate_map={None: schema},
        render_schema_translate=True,
        compile_kwargs={"render_postcompile": True},
    )
    values = compiled.construct_params()
    processors = compiled._bind_processors
    return str(compiled), {
        name: processors[name](value) if name in processors else value for name, value in values.items()
    }


class Database:
    """A lazily opened pool of connections to one schema. Thread-safe, and opened anew in a forked child.

    The first transaction sees whether the schema is this version's; `any_version`: it may be another's.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str,
        pool_size: int = 8,
        timeout: float = 15.0,
        name: str = "sender",
        any_version: bool = False,
    ) -> None:
        self.url = normalise_url(url)
        self.schema = schema
        self._pool_size = pool_size
        self._timeout = timeout
        self._name = name
        self._checked = any_version
        self._lock = threading.Lock()
        self._pool: ConnectionPool[_Connection] | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"Database(schema={self.schema!r})"  # the URL may hold a password

    @contextmanager
    def transaction(self, *, pipelined: bool = False) -> Iterator[Transaction]:
        """A transaction on a pooled connection: committed at the end, rolled back on an exception.

        `pipelined`: statements are sent when somebody wants their rows, or at the end with the commit, several in one
        round trip, and so is what they raise. (Through a pooler they are sent one by one, as ever.)

        Raises `DatabaseUnavailableError` when no connection can be had in time, `SchemaVersionError` when the schema is
        another version's; errors of statements stay psycopg's.
        """
        with self._lend() as connection, connection:  # psycopg: commit or rollback; does not close pooled connections
            if pipelined and connection.direct:
                with connection.pipeline():
                    yield self._checked_transaction(connection)
                    connection.commit()
            else:
                yield self._checked_transaction(connection)

    @contextmanager
    def statements(self) -> Iterator[Transaction]:
        """As `transaction`, but each statement is a transaction of its own, that is over when the server has done it:
        a process that stands still in the middle holds nobody up, and no round trip is spent on the commit."""
        with self._lend() as connection:
            connection.autocommit = True
            try:
                yield self._checked_transaction(connection)
            finally:
                if connection.info.transaction_status is TransactionStatus.IDLE:
                    connection.autocommit = False
                else:  # interrupted: the pool opens another
                    connection.close()

    @contextmanager
    def _lend(self) -> Iterator[_Connection]:
        """A connection of the pool, until the end; with the errors that `transaction` names."""
        try:
            connection = self._connection()
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise DatabaseUnavailableError(self._why_none(error)) from None
        pool = self._open_pool()
        try:
            yield connection
        except psycopg.ProgrammingError as error:
            if is_of_statement(error):
                self._check_again(connection)
            raise
        except (UnicodeEncodeError, psycopg.DataError) as error:
            raise refusal(error) from None
        finally:
            connection.used_at = time.monotonic()
            pool.putconn(connection)

    def _connection(self) -> _Connection:
        """A connection within `timeout`. Asked for again and again: only asking makes the pool try to connect anew."""
        end = time.monotonic() + self._timeout
        while True:
            left = end - time.monotonic()
            try:
                return self._open_pool().getconn(timeout=max(0.001, min(left, RECONNECT)))
            except PoolTimeout:
                if left <= RECONNECT:
                    raise

    @contextmanager
    def join(self, connection: Any) -> Iterator[Transaction]:
        """Join the caller's own transaction: a psycopg 3 or a SQLAlchemy connection (on psycopg 3). Never commits."""
        driver = driver_connection(connection)
        try:
            if driver.autocommit:  # without a transaction each of our statements would commit, or fail, by itself
                with driver.transaction():
                    yield self._checked_transaction(driver)
            else:
                yield self._checked_transaction(driver)
        except (UnicodeEncodeError, psycopg.DataError) as error:
            raise refusal(error) from None

    @contextmanager
    def within(self, connection: Any | None) -> Iterator[Transaction]:
        """`join(connection)` when there is one, else a transaction of our own."""
        with self.join(connection) if connection is not None else self.transaction() as transaction:
            yield transaction

    def _checked_transaction(self, connection: psycopg.Connection[Any]) -> Transaction:
        transaction = Transaction(connection, self.schema)
        if not self._checked:
            check_schema(transaction)
            self._checked = True
        return transaction

    def _check_again(self, connection: psycopg.Connection[Any]) -> None:
        """After a statement that PostgreSQL does not understand: raises `SchemaVersionError` when that is because the
        schema is not, or is no longer, this version's."""
        try:
            with connection:
                check_schema(Transaction(connection, self.schema))
        except psycopg.errors.UndefinedTable as error:
            raise SchemaVersionError(
                f"schema {self.schema!r} is not migrated ({first_line(error)}): run `sender migrate`"
            ) from None
        except psycopg.Error:
            return  # it cannot be told

    def _why_none(self, error: BaseException) -> str:
        """Why there is no connection. The pool only says that it waited: one that is asked for directly says more."""
        try:
            psycopg.connect(self.url, connect_timeout=2, application_name=self._name).close()
        except psycopg.OperationalError as cause:
            return no_connection(cause)
        if isinstance(error, PoolTimeout):
            return (
                f"all {self._pool_size} PostgreSQL connections of this process were busy for {self._timeout:g} s; "
                "raise SENDER_DATABASE_POOL_SIZE, or look for what is slow"
            )
        return no_connection(error)

    def close(self) -> None:
        """Close the pool; the next transaction opens a new one."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            pool.close()

    def _open_pool(self) -> ConnectionPool[_Connection]:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():
                self._pool = ConnectionPool(
                    self.url,
                    min_size=0,
                    max_size=self._pool_size,
                    timeout=self._timeout,
                    max_idle=300,
                    reconnect_timeout=RECONNECT,
                    connection_class=_Connection,
                    configure=_look_who_answers,
                    check=_check_if_idle,
                    kwargs=_connection_options(self.url)
                    | {"application_name": self._name, "prepare_threshold": None, "connect_timeout": 10},
                    open=True,
                    name=self._name,
                )
                self._pid = os.getpid()
            return self._pool


class _Connection(psycopg.Connection[TupleRow]):
    """One that knows when it was last used (monotonic), and whether PostgreSQL itself is at its other end."""

    used_at = 0.0
    direct = False


def _check_if_idle(connection: _Connection) -> None:
    """See whether a connection still works, before somebody gets it: one that just did is taken at its word."""
    if time.monotonic() - connection.used_at > _FRESH:
        ConnectionPool.check_connection(connection)


def _look_who_answers(connection: _Connection) -> None:
    """PostgreSQL knows its process by the number that the connection was told; a pooler tells a number of its own."""
    row = connection.execute("SELECT pg_backend_pid()").fetchone()
    connection.rollback()
    connection.direct = row == (connection.info.backend_pid,)


def _connection_options(url: str) -> dict[str, Any]:
    given = conninfo_to_dict(url)
    return {name: value for name, value in _VANISHED.items() if name not in given}


def driver_connection(connection: Any) -> psycopg.Connection[Any]:
    """The psycopg 3 connection under a caller's connection. Raises `ConfigurationError` when there is none."""
    candidate = connection
    if isinstance(candidate, sa.engine.Connection):
        candidate = candidate.connection.driver_connection
    if not isinstance(candidate, psycopg.Connection):
        raise ConfigurationError(
            f"connection= takes a psycopg 3 connection or a SQLAlchemy connection on psycopg 3 "
            f"(postgresql+psycopg://), not {type(connection).__name__} on {type(candidate).__module__}"
        )
    return candidate


def normalise_url(url: str) -> str:
    """A libpq URL from a libpq or a SQLAlchemy one (`postgresql+psycopg://`)."""
    head, separator, rest = url.partition("://")
    if not separator or head.split("+")[0] not in {"postgresql", "postgres"}:
        raise ConfigurationError("SENDER_DATABASE_URL must look like postgresql://user:password@host:5432/name")
    try:
        conninfo_to_dict(f"postgresql://{rest}")
    except psycopg.Error:  # whose message holds the part that it trips over, which may be of the password
        raise ConfigurationError(
            "SENDER_DATABASE_URL cannot be read: special characters in the user and the password must be "
            "percent-encoded, as in p%40ss for p@ss"
        ) from None
    return f"postgresql://{rest}"
