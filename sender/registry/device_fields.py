"""What the fields of a device may hold, and the one form in which they are kept.

The checks return the value to keep, and raise `ValueError` in words that fit behind the field's name. Those of
locales and time zones are cached: an import meets the same few a million times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import available_timezones

LONGEST_USER = 255
LONGEST_ATTRIBUTES = 16_384  # bytes of JSON
LONGEST_NAME = 100  # of an attribute
_AHEAD = timedelta(days=1)  # a clock may be wrong by that much
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)

_LOCALE = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8})*")


@lru_cache(maxsize=4096)
def check_locale(text: str) -> str:
    """A BCP 47 tag such as fr-FR. iOS writes fr_FR and en_US@calendar=buddhist: those are brought into form."""
    tag = text.strip().split("@")[0].split(".")[0].replace("_", "-")
    if not _LOCALE.fullmatch(tag):
        raise ValueError(f"{text[:40]!r} is no locale such as fr-FR or zh-Hans-CN")
    language, *rest = tag.split("-")
    return "-".join([language.lower(), *(_cased(part) for part in rest)])


def _cased(part: str) -> str:
    if len(part) == 4 and part.isalpha():
        return part.title()  # a script
    return part.upper() if len(part) <= 3 else part.lower()


@lru_cache(maxsize=4096)
def check_timezone(text: str) -> str:
    """A name of the IANA time zone database, such as Europe/Paris."""
    name = text.strip()
    if name not in _zones():
        raise ValueError(f"{text[:40]!r} is no IANA time zone such as Europe/Paris")
    return name


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def check_user(user: str | int) -> str:
    """The application's own id of a user, as text."""
    if isinstance(user, bool) or not isinstance(user, str | int):
        raise ValueError(f"must be text, not {type(user).__name__}")  # noqa: TRY004 - one kind of error
    text = str(user)
    if not text.strip() or len(text) > LONGEST_USER:
        raise ValueError(f"must have 1 to {LONGEST_USER} characters")
    return _storable(text)


def check_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object: its names are text, its values whatever JSON has."""
    if not isinstance(attributes, Mapping):
        raise ValueError(f"must be a JSON object, not {type(attributes).__name__}")  # noqa: TRY004
    for name in attributes:
        if not isinstance(name, str) or not name or len(name) > LONGEST_NAME:
            raise ValueError(f"{str(name)[:40]!r} is no name of 1 to {LONGEST_NAME} characters")
    try:
        text = json.dumps(attributes, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if len(_storable(text).encode()) > LONGEST_ATTRIBUTES:
        raise ValueError(f"more than {LONGEST_ATTRIBUTES:,} bytes of JSON")
    if "\\u0000" in text:
        check_no_nul(attributes)
    return dict(attributes)


def check_no_nul(value: Any) -> None:
    """PostgreSQL keeps no NUL characters."""
    if isinstance(value, str) and "\0" in value:
        raise ValueError("has a NUL character")
    if isinstance(value, Mapping):
        for name, item in value.items():
            check_no_nul(name)
            check_no_nul(item)
    elif isinstance(value, list | tuple):
        for item in value:
            check_no_nul(item)


def check_time(moment: datetime, now: datetime) -> datetime:
    """An aware time from 1970 on that is not in the future, but for clocks that differ."""
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise ValueError("must be an aware datetime: one with a time zone")
    if moment > now + _AHEAD:
        raise ValueError(f"{moment.isoformat()} is in the future")
    if moment < _EARLIEST:  # the zero of some languages is the year 1, which is the year before in some zones
        raise ValueError(f"{moment.isoformat()} is before 1970: leave it out when it is not known")
    return moment


def parse_time(text: str) -> datetime:
    """A time in a file: ISO 8601 (without a zone: UTC), or Unix seconds or milliseconds."""
    plain = text.strip()
    if plain[4:5] != "-" and len(plain) > 8:  # fromisoformat would read 1785060900000 as a day of the year 1785
        return _unix_time(plain)
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError:
        return _unix_time(plain)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _unix_time(text: str) -> datetime:
    try:
        number = float(text)
        return datetime.fromtimestamp(number / 1000 if number > 1e11 else number, UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{text[:40]!r} is no time such as 2026-07-26T10:15:00Z") from None


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode") from None
    return text
