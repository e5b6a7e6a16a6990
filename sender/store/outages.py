"""What an error of PostgreSQL's says: whether the server is away, somebody was in the way, or the data or the statement
is wrong."""

from __future__ import annotations

import psycopg
from psycopg_pool import PoolTimeout

from sender.errors import DatabaseUnavailableError, InvalidInputError

#: Errors without an SQLSTATE after which the same transaction can simply be run again.
_TRANSIENT = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError, PoolTimeout)
#: Errors of a transaction that somebody was in the way of: another time it may have its locks.
BUSY = (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected)

#: SQLSTATEs after which the same statement may succeed another time: besides those of the server as a whole, a login, a
#: database or a schema that is not there, a timeout, a conflict with somebody else, and a privilege that can be given.
#: What is not among them is wrong with the data or with the statement, and fails again.
_PASSING = ("08", "25006", "25P03", "25P04", "28", "3D", "3F", "40", "42501", "53", "55", "57", "58", "F0")

#: Classes of SQLSTATE that speak of the data of a statement: with other data it succeeds.
_OF_DATA = frozenset({"0A", "21", "22", "23", "44", "54", "P0", "XX"})

#: SQLSTATEs that speak of the server as a whole: no connection, no resources, shutting down or starting, a standby.
_AWAY = ("08", "25006", "53", "57P", "58")

#: What PostgreSQL and PgBouncer say when there are too many connections.
_TOO_MANY = (
    "too many clients",
    "remaining connection slots",
    "too many connections",
    "no more connections allowed",
)


def is_outage(error: BaseException) -> bool:
    """Whether the same transaction may succeed later as it is: the server is away, full, busy or not migrated. False
    for an error of its data or of its statements, and for everything that is not PostgreSQL's."""
    if isinstance(error, (DatabaseUnavailableError, PoolTimeout)):
        return True
    if not isinstance(error, psycopg.Error):
        return False
    if error.sqlstate is None:
        return isinstance(error, _TRANSIENT)
    if isinstance(error, psycopg.errors.CheckViolation) and error.diag.constraint_name is None:
        return True  # a partition is missing: of the table, not of the row
    return error.sqlstate.startswith(_PASSING)


def is_of_data(error: psycopg.Error) -> bool:
    """Whether an error is that of some rows of a statement: without them it succeeds."""
    return not is_outage(error) and (error.sqlstate is None or error.sqlstate[:2] in _OF_DATA)


def is_of_statement(error: psycopg.Error) -> bool:
    """Whether a statement is wrong as it is (SQLSTATE class 42): a fault of ours, or of the schema that it meets."""
    return (error.sqlstate or "").startswith("42") and not is_outage(error)


def is_away(error: BaseException) -> bool:
    """Whether the server cannot be had at all: then nothing else that needs it works at this moment either."""
    if not isinstance(error, psycopg.Error) or error.sqlstate is None:
        return is_outage(error)
    return error.sqlstate.startswith(_AWAY)


def refusal(error: UnicodeEncodeError | psycopg.DataError) -> Exception:
    """Bad input where the error says that PostgreSQL cannot hold a value; else the error itself."""
    match error:
        case UnicodeEncodeError():
            return InvalidInputError("text", ["holds half a surrogate pair: it is no UTF-8"])
        case psycopg.errors.NumericValueOutOfRange() | psycopg.errors.DatetimeFieldOverflow():
            return InvalidInputError("number or time", ["is too large or too small to be kept"])
        case psycopg.errors.InvalidRowCountInLimitClause():
            return InvalidInputError("limit", ["is less than none"])
        case _ if error.sqlstate is None and "NUL" in str(error):
            return InvalidInputError("text", ["holds a NUL character, which PostgreSQL does not keep"])
        case _:
            return error


def no_connection(error: BaseException) -> str:
    """What is wrong when no connection can be had, and what to do about it."""
    line = first_line(error)
    if any(mark in line for mark in _TOO_MANY):
        return (
            f"PostgreSQL has no connection left for us ({line}); raise its max_connections, run fewer processes, lower "
            "SENDER_DATABASE_POOL_SIZE, or put PgBouncer in between: see docs/deployment.md"
        )
    return f"PostgreSQL does not answer: {line}; check SENDER_DATABASE_URL and that it is running"


def first_line(error: BaseException) -> str:
    """What an error says, without the detail and the statement below it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
