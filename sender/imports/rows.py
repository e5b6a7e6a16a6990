"""From a record to a row of the staging table, checked: the loop that an import spends its time in.

A `RowReader` is made once for a file and then only looks things up. `read` gives a line in COPY's text format.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import lru_cache
from json.encoder import encode_basestring
from operator import itemgetter
from typing import Any

from sender.errors import InvalidInputError
from sender.imports.options import COLUMNS, DROP, AttributeType, InactiveAs, Options
from sender.model import Authorization, Environment
from sender.policy.states import DeviceState
from sender.registry.device_fields import (
    LONGEST_ATTRIBUTES,
    LONGEST_NAME,
    LONGEST_USER,
    check_attributes,
    check_locale,
    check_no_nul,
    check_time,
    check_timezone,
    check_user,
    parse_time,
)
from sender.registry.tokens import normalise

#: The staging table's columns, in the order in which `read` writes them.
STAGED = (
    "line",
    "token",
    "external_user",
    "environment",
    "locale",
    "timezone",
    "registered_at",
    "last_seen_at",
    "authorization",
    "state",
    "attributes",
)

_NULL = "\\N"
_TRUE = frozenset({"1", "t", "true", "y", "yes", "active"})
_FALSE = frozenset({"0", "f", "false", "n", "no", "inactive"})
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_SURELY_SHORT = LONGEST_ATTRIBUTES // 4  # characters: not too long in bytes, whatever they are
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class RowReader:
    """Reads the records of one file. `header` is None for JSONL, whose objects name their fields themselves."""

    def __init__(self, name: str, header: list[str] | None, options: Options, now: datetime) -> None:
        self._options = options
        self._now = now
        self._header = header
        self._environment = _NULL if options.environment is None else options.environment.value
        ours = _rename(name, header, options)
        # A column that is not there is read as the empty cell that `read` puts behind the last one.
        self._pick = itemgetter(*(ours.index(column) if column in ours else -1 for column in COLUMNS))
        self._attributes = [
            (column, at, _converter(column, options.types.get(column)), _renderer(column, options.types.get(column)))
            for at, column in enumerate(ours)
            if column not in COLUMNS and column != DROP
        ]

    def read(self, line: int, record: list[str] | dict[str, Any]) -> str | None:
        """The row in COPY's text format, None for one to skip. Raises `ValueError` that says why it is bad."""
        if isinstance(record, dict):
            fields, attributes = self._of_object(record)
            return self._row(line, fields, _attributes(fields[-1], attributes))
        if len(record) != len(self._header or ()):
            raise ValueError(f"{len(record)} fields, the header has {len(self._header or ())}")
        fields = self._pick([*record, ""])
        return self._row(line, fields, self._attributes_of(record, fields[-1]))

    def _attributes_of(self, record: list[str], more: str) -> str:
        """A CSV row's attributes as JSON: put together from ready pieces, unless something about them is unusual."""
        pieces = [render(record[at]) for _, at, _, render in self._attributes if record[at] != ""]
        text = "{" + ",".join(pieces) + "}"
        if more == "" and "\\" not in text and len(text) <= _SURELY_SHORT:
            return text
        return _attributes(
            more, {name: convert(record[at]) for name, at, convert, _ in self._attributes if record[at] != ""}
        )

    def _of_object(self, record: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """JSONL: fields as text as far as they are known, attributes as they are; null is "says nothing"."""
        columns, types = self._options.columns, self._options.types
        given = {columns.get(name, name): value for name, value in record.items() if value is not None}
        given.pop(DROP, None)
        fields = [_as_cell(column, given.pop(column, "")) for column in COLUMNS]
        for name in given:
            if not name or len(name) > LONGEST_NAME:
                raise ValueError(f"{name[:40]!r} is no attribute's name of 1 to {LONGEST_NAME} characters")
        for name, kind in types.items():
            if isinstance(given.get(name), str):
                given[name] = _converter(name, kind)(given[name])
        return fields, given

    def _row(self, line: int, fields: Sequence[Any], attributes: str) -> str | None:
        token, user, environment, locale, zone, registered, seen, active, state, authorization, _ = fields
        kept = self._state(active, state)
        if kept is None:
            return None
        row = "\t".join(
            (
                str(line),
                _token(token),
                _user(user) if user != "" else _NULL,
                _environment(environment) if environment != "" else self._environment,
                check_locale(locale) if locale != "" else _NULL,
                check_timezone(zone) if zone != "" else _NULL,
                self._time("registered_at", registered) if registered != "" else _NULL,
                self._time("last_seen_at", seen) if seen != "" else _NULL,
                _authorization(authorization) if authorization != "" else _NULL,
                kept,
                attributes,
            )
        )
        if not row.isascii():
            _check_unicode(row)
        return row

    def _state(self, active: str, state: str) -> str | None:
        """The state of a device that is new; None when its row is to be skipped."""
        if active != "" and not _bool(active):
            return None if self._options.inactive_as is InactiveAs.SKIP else DeviceState.QUARANTINED.value
        return DeviceState.ACTIVE.value if state == "" else _state(state)

    def _time(self, column: str, text: str) -> str:
        try:
            return check_time(parse_time(text), self._now).isoformat()
        except (ValueError, OverflowError) as error:
            raise ValueError(f"{column} {error}") from None


def _rename(name: str, header: list[str] | None, options: Options) -> list[str]:
    """The header in our names. Raises `InvalidInputError` with all faults."""
    faults = [f"{column!r} is no attribute's name" for column in options.types if column in COLUMNS]
    ours = [options.columns.get(column, column) for column in header or []]
    if header is not None:
        faults += [
            f"--map names {column!r}, the file has no such column" for column in options.columns if column not in header
        ]
        faults += [
            f"--type names {column!r}, the file has no such column" for column in options.types if column not in ours
        ]
        faults += [f"two columns are {column!r}" for column in {*ours} - {DROP} if ours.count(column) > 1]
        if "" in ours:
            faults.append(f"column {ours.index('') + 1} has no name")
        if any(len(column) > LONGEST_NAME or "\0" in column or not _is_unicode(column) for column in ours):
            faults.append("a column's name is too long, or no text")
        if "token" not in ours:
            shown = ", ".join(column[:30] for column in header[:12])
            faults.append(f"no column is the token: say which with --map THEIRS=token (columns: {shown})")
    if faults:
        raise InvalidInputError(name, faults)
    return ours


def _token(text: str) -> str:
    try:
        return normalise(text)
    except InvalidInputError as error:
        raise ValueError(error.faults[0]) from None


def _user(text: str) -> str:
    if len(text) > LONGEST_USER or text.isspace() or "\0" in text:
        check_user(text)
    return text.translate(_ESCAPES) if not text.isalnum() else text


@lru_cache(maxsize=64)
def _environment(text: str) -> str:
    return _member(Environment, "environment", {"development": "sandbox", "dev": "sandbox", "prod": "production"}, text)


@lru_cache(maxsize=64)
def _authorization(text: str) -> str:
    return _member(Authorization, "authorization", {}, text)


@lru_cache(maxsize=64)
def _state(text: str) -> str:
    return _member(DeviceState, "state", {"blocklisted": "active"}, text)


def _member(kind: Any, column: str, aliases: dict[str, str], text: str) -> str:
    value = str(text).strip().lower()
    try:
        return str(kind(aliases.get(value, value)))
    except ValueError:
        raise ValueError(f"{column} {text[:40]!r} is none of {', '.join(kind)}") from None


@lru_cache(maxsize=64)
def _bool(text: str) -> bool:
    value = text.strip().lower()
    if value in _TRUE or value in _FALSE:
        return value in _TRUE
    raise ValueError(f"{text[:40]!r} is neither true nor false")


def _attributes(more: Any, attributes: dict[str, Any]) -> str:
    """Attributes as JSON and escaped for COPY; `more` is what the column `attributes` holds."""
    if more != "":
        attributes = {**_object(more), **attributes}
    try:
        text = _encode(attributes)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"attributes: {error}") from None
    if len(text) > _SURELY_SHORT:
        check_attributes(attributes)
    if "\\" in text:
        check_no_nul(attributes)
        return text.translate(_ESCAPES)
    return text


def _object(value: Any) -> dict[str, Any]:
    """The column `attributes`: a JSON object, in CSV as text."""
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise ValueError("attributes is not JSON") from None
    return {name: item for name, item in check_attributes(found).items() if item is not None}


def _as_cell(column: str, value: Any) -> Any:
    if isinstance(value, str) or column == "attributes":
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    raise ValueError(f"{column} is not text")


def _converter(name: str, kind: AttributeType | None) -> Callable[[str], Any]:
    """How an attribute's text is read; what it raises names the attribute."""
    convert = _CONVERTERS.get(kind)
    if convert is None:
        return str

    def checked(text: str) -> Any:
        try:
            return convert(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{name}: {text[:40]!r} is not of type {kind}") from None

    return checked


def _renderer(name: str, kind: AttributeType | None) -> Callable[[str], str]:
    """A cell's text as the piece of JSON that it becomes, its name included."""
    head = f"{encode_basestring(name)}:"
    if kind in (None, AttributeType.STR):
        return lambda text: head + encode_basestring(text)
    convert = _converter(name, kind)
    return lambda text: head + _encode_value(name, convert(text))


def _encode_value(name: str, value: Any) -> str:
    try:
        return str(value) if type(value) is int else _encode(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: {error}") from None


_CONVERTERS: dict[AttributeType | None, Callable[[str], Any]] = {
    AttributeType.INT: int,
    AttributeType.FLOAT: float,
    AttributeType.BOOL: _bool,
    AttributeType.JSON: json.loads,
}


def _check_unicode(text: str) -> None:
    if not _is_unicode(text):
        raise ValueError("not UTF-8 text")


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
