"""What is wrong with the parts of a segment: names, values, spans of time. Each function returns faults as text, so
that a person sees all of them at once."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

LONGEST_LIST = 100_000
LONGEST_NAME = 200


def check_attribute(name: Any) -> list[str]:
    """What is wrong with an attribute's name."""
    return check_text("attribute", name)


def check_scalars(name: str, values: list[Any]) -> list[str]:
    """What is wrong with the values that an attribute is compared with."""
    if not values:
        return [f"{name}: the list of values is empty"]
    if len(values) > LONGEST_LIST:
        return [f"{name}: {len(values):,} values; at most {LONGEST_LIST:,}"]
    return [fault for value in values for fault in check_scalar(name, value)]


def check_span(field: str, after: Any, before: Any) -> list[str]:
    """What is wrong with the ends of a span of time."""
    if after is None and before is None:
        return [f"{field}: say after, before, or both"]
    faults = [
        fault for end, moment in (("after", after), ("before", before)) for fault in _check_moment(field, end, moment)
    ]
    if not faults and isinstance(after, datetime) and isinstance(before, datetime) and after >= before:
        faults.append(f"{field}: after is not earlier than before, so that no device could match")
    return faults


def _check_moment(field: str, end: str, moment: Any) -> list[str]:
    match moment:
        case None:
            return []
        case datetime() if moment.tzinfo is None:
            return [f"{field}: {end} has no time zone: pass an aware datetime"]
        case datetime() if not _has_utc(moment):
            return [f"{field}: {end} is outside of the years 1 to 9999 in UTC"]
        case datetime():
            return []
        case timedelta() if moment < timedelta(0):
            return [f"{field}: {end} lies in the future: pass how long ago, as a positive timedelta"]
        case timedelta() if moment > timedelta(days=365 * 1000):
            return [f"{field}: {end} is too long ago"]
        case timedelta():
            return []
        case _:
            return [f"{field}: {end} must be an aware datetime or a timedelta, not {kind_of(moment)}"]


def _has_utc(moment: datetime) -> bool:
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


def check_scalar(path: str, value: Any) -> list[str]:
    """What is wrong with one value that an attribute is compared with."""
    match value:
        case str():
            return check_text(path, value, empty=True, longest=10_000)
        case float() if not math.isfinite(value):
            return [f"{path}: {value} is not a number that JSON knows"]
        case int() if not isinstance(value, bool) and abs(value) >= 10**30:
            return [f"{path}: the number is too large"]
        case None | bool() | int() | float():
            return []
        case _:
            return [f"{path}: must be a text, a number, true, false or null, not {kind_of(value)}"]


def check_text(path: str, value: Any, *, empty: bool = False, longest: int = LONGEST_NAME) -> list[str]:
    """What is wrong with a name or a text."""
    if not isinstance(value, str):
        return [f"{path}: must be a text, not {kind_of(value)}"]
    if not value and not empty:
        return [f"{path}: must not be empty"]
    if len(value) > longest:
        return [f"{path}: longer than {longest:,} characters"]
    if "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value):
        return [f"{path}: holds a NUL character or half a surrogate pair"]
    return []


def kind_of(value: Any) -> str:
    """The type of a value, in the words of JSON where that is null."""
    return "null" if value is None else type(value).__name__
