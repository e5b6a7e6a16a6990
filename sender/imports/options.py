"""What can be asked of an import, and what it reports."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sender.errors import InvalidInputError
from sender.model import Environment

#: Columns with a meaning of their own; every other column becomes an attribute.
COLUMNS = (
    "token",
    "user",
    "environment",
    "locale",
    "timezone",
    "registered_at",
    "last_seen_at",
    "active",
    "state",
    "authorization",
    "attributes",
)
DROP = "-"  # `--map name=-` leaves a column out

#: Called now and then with the stage, how far it is, and how far it goes (None: not known, as for a pipe).
Progress = Callable[["Stage", int, int | None], None]


class Stage(StrEnum):
    """Where an import is."""

    READING = "reading"  # counts bytes of the file
    MERGING = "merging"  # counts rows


class InactiveAs(StrEnum):
    """What becomes of rows whose `active` is false."""

    QUARANTINED = "quarantined"  # known, and not sent to
    SKIP = "skip"


class AttributeType(StrEnum):
    """How an attribute's text in a CSV cell is read. Without one it stays text."""

    STR = "str"
    INT = "int"
    FLOAT = "float"
    BOOL = "bool"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to read a file: their column names to ours, types of attributes, what a row that says nothing means."""

    columns: Mapping[str, str] = field(default_factory=dict)  # theirs -> ours, an attribute's name, or "-"
    types: Mapping[str, AttributeType] = field(default_factory=dict)  # attribute -> type
    environment: Environment | None = None  # of rows that name none; None: what is known, or the app's
    inactive_as: InactiveAs = InactiveAs.QUARANTINED


@dataclass(frozen=True, slots=True, kw_only=True)
class BadLine:
    """A line that was refused."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What an import did. `lines` is the sum of the seven counts after it."""

    lines: int  # rows of data in the file
    added: int
    updated: int
    unchanged: int
    outdated: int  # we know of a later registration of that token
    duplicates: int  # another row of the file has the same token and a newer registration, or stands further down
    skipped: int  # not active, with --inactive-as skip
    rejected: int
    rejects: Path | None = None  # the file with the bad lines
    first_bad_lines: tuple[BadLine, ...] = ()


def parse_map(texts: Iterable[str]) -> dict[str, str]:
    """Read `registration_id=token,created=registered_at`. Raises `InvalidInputError`."""
    return _pairs("--map", texts, "=", "THEIRS=OURS, such as registration_id=token, or NAME=- to leave a column out")


def parse_types(texts: Iterable[str]) -> dict[str, AttributeType]:
    """Read `age:int,vip:bool`. Raises `InvalidInputError`."""
    allowed = ", ".join(AttributeType)
    pairs = _pairs("--type", texts, ":", f"NAME:TYPE, a type is one of {allowed}")
    faults = [
        f"{name}: {kind!r} is none of {allowed}" for name, kind in pairs.items() if kind not in set(AttributeType)
    ]
    if faults:
        raise InvalidInputError("--type", faults)
    return {name: AttributeType(kind) for name, kind in pairs.items()}


def _pairs(option: str, texts: Iterable[str], separator: str, form: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    faults = []
    for part in (part for text in texts for part in text.split(",") if part.strip()):
        left, found, right = (piece.strip() for piece in part.rpartition(separator))
        if not (left and found and right):
            faults.append(f"{part.strip()!r} is not {form}")
        elif pairs.setdefault(left, right) != right:
            faults.append(f"{left!r} is named twice")
    if faults:
        raise InvalidInputError(option, faults)
    return pairs
