"""Whether the schema is the one that this version's statements are written for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sender._version import __version__
from sender.errors import SchemaVersionError

if TYPE_CHECKING:
    from sender.store.database import Transaction

#: Every revision of the schema, oldest first; a test compares them with the migrations.
REVISIONS = ("0001", "0002", "0003")
HEAD = REVISIONS[-1]


def check(transaction: Transaction) -> None:
    """Raises `SchemaVersionError` when the schema is older or newer than this version's."""
    row = transaction.execute("SELECT version_num FROM {s}.alembic_version").fetchone()
    current = row[0] if row else None
    if current == HEAD:
        return
    if current in REVISIONS[:-1] or current is None:
        raise SchemaVersionError(
            f"schema {transaction.schema!r} is at {current or 'nothing'}, and version {__version__} needs {HEAD}: run "
            "`sender migrate`"
        )
    raise SchemaVersionError(
        f"schema {transaction.schema!r} is at {current}, which a newer version made; this is {__version__}: upgrade "
        "apns-campaign-sender on this host, or point SENDER_DATABASE_SCHEMA at another schema"
    )
