"""The `--where` conditions of the command line.

    plan=pro   plan!=free   age>=18   plan in pro,team   plan not in pro,team   tags has news
    locale=fr-FR   language in fr,nl   timezone=Europe/Paris   environment=sandbox   user=u-42
    registered>=2027-01-01   last_seen<2027-01-01T12:00:00+02:00

Values that read as numbers, true, false or null are such, and equal the same value kept as text too (a CSV import
keeps texts). "…" makes a text of them, `attributes.locale` an attribute of a name that a field has.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from typing import Any

from sender.audience import segment as seg
from sender.audience.segment_json import ORDER, read
from sender.errors import InvalidSegmentError

_CONDITION = re.compile(
    r"\s*(?P<name>[^\s=!<>]+)\s*(?P<operator><=|>=|!=|==|=|<|>|\s(?:not\s+in|in|has)\s)\s*(?P<value>.*?)\s*",
    re.DOTALL | re.IGNORECASE,
)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_ITEM = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)')
_PREFIX = "attributes."
_LONGEST_SHOWN = 200  # characters of a condition that an error repeats
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}


def parse(text: str) -> seg.Segment:
    """One condition. Raises `InvalidSegmentError` that shows what would do."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise _fault(text, "is no condition: write NAME=VALUE, NAME!=VALUE, NAME>=NUMBER or NAME in A,B")
    name, value = found["name"], found["value"]
    operator = " ".join(found["operator"].lower().split()).replace("==", "=")
    if not value and operator not in ("=", "!="):
        raise _fault(text, f"has no value after {operator}")
    try:
        if name in seg.FIELDS:
            return _field(text, name, operator, value)
        return _attribute(text, name.removeprefix(_PREFIX), operator, value)
    except InvalidSegmentError as error:
        raise InvalidSegmentError(f"--where {_shown(text)}", error.faults) from None


def parse_all(texts: list[str]) -> seg.Segment:
    """All conditions together; every fault of every one of them at once."""
    parts: list[seg.Segment] = []
    faults: list[str] = []
    for text in texts:
        try:
            parts.append(parse(text))
        except InvalidSegmentError as error:
            faults += [f"{_shown(text)}: {fault}" for fault in error.faults]
    if faults:
        raise InvalidSegmentError("--where", faults)
    if not parts:
        return seg.Everyone()
    whole = parts[0]
    for part in parts[1:]:
        whole &= part
    return whole


def _attribute(text: str, name: str, operator: str, value: str) -> seg.Segment:
    match operator:
        case "=" | "!=":
            found = read({"attribute": name, "in": _either(value)})
        case "in" | "not in":
            found = read({"attribute": name, "in": [one for item in _items(text, value) for one in _either(item)]})
        case "has":
            found = _any([read({"attribute": name, "contains": one}) for one in _either(value)])
        case _:
            bound = _value(value)
            if isinstance(bound, str) and _NUMBER.fullmatch(value):
                raise _fault(text, "the number is too large")
            return read({"attribute": name, operator: value if bound is None or isinstance(bound, bool) else bound})
    return ~found if operator in ("!=", "not in") else found


def _field(text: str, name: str, operator: str, value: str) -> seg.Segment:
    if name in ("registered", "last_seen"):
        return _moment(text, name, operator, value)
    if operator in ORDER or operator == "has":
        raise _fault(text, f"{name} takes =, !=, in or not in")
    items = _items(text, value) if operator in ("in", "not in") else [value]
    values = [json.loads(item) if _quoted(item) else item for item in items]
    found = _any([read({name: one}) for one in values]) if name == "environment" else read({name: values})
    return ~found if operator in ("!=", "not in") else found


def _moment(text: str, name: str, operator: str, value: str) -> seg.Segment:
    end = {">=": "after", ">": "after", "<": "before", "<=": "before"}.get(operator)
    if end is None:
        raise _fault(text, f"{name} takes >= or < and a time, such as {name}>=2027-01-01")
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise _fault(text, f"{_shown(value)} is no time: write 2027-01-01 or 2027-01-01T12:00:00+02:00") from None
    if moment.tzinfo is None:
        if len(value) > len("2027-01-01"):
            raise _fault(text, "the time has no zone: add Z or an offset such as +02:00")
        moment = moment.replace(tzinfo=UTC)
    return read({name: {end: moment.isoformat()}})


def _items(text: str, value: str) -> list[str]:
    items: list[str] = []
    position = 0
    while position < len(value):
        found = _ITEM.match(value, position)
        if found is None:
            raise _fault(text, 'the list is malformed: write A,B or "A","B"')
        items.append(found[1])
        position = found.end()
    if not items or not all(items):
        raise _fault(text, "the list has an empty item")
    return items


def _either(value: str) -> list[Any]:
    """The value as it reads, and as text when that is another one."""
    typed = _value(value)
    return [typed] if isinstance(typed, str) else [typed, value]


def _value(value: str) -> Any:
    if _quoted(value):
        try:
            return json.loads(value)
        except ValueError:
            return value[1:-1]
    if value.lower() in _WORDS:
        return _WORDS[value.lower()]
    if _NUMBER.fullmatch(value) and math.isfinite(number := float(value)):
        return int(value) if re.fullmatch(r"[+-]?\d+", value) else number
    return value


def _quoted(value: str) -> bool:
    return len(value) >= 2 and value.startswith('"') and value.endswith('"')


def _any(parts: list[seg.Segment]) -> seg.Segment:
    return parts[0] if len(parts) == 1 else seg.Or(parts=tuple(parts))


def _shown(text: str) -> str:
    return repr(text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "…")


def _fault(text: str, fault: str) -> InvalidSegmentError:
    return InvalidSegmentError(f"--where {_shown(text)}", [fault])
