"""Segments as JSON: written canonically, read strictly, with every fault and where it is.

{"all": true}                                  {"and": […]}  {"or": […]}  {"not": {…}}
{"attribute": "plan", "in": ["pro", "team"]}   {"attribute": "age", ">=": 18}
{"attribute": "tags", "contains": "news"}      {"locale": ["fr-FR"]}  {"language": ["fr"]}
{"timezone": ["Europe/Paris"]}                 {"environment": "production"}  {"user": ["u-42"]}
{"registered": {"after": "2027-01-01T00:00:00+00:00", "before": {"ago": 86400}}}  {"last_seen": {…}}
{"percentage": 10, "seed": "a"}                {"not_sent": "spring-sale-2027"}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sender.audience import segment as seg
from sender.audience.checks import (
    LONGEST_LIST,
    check_attribute,
    check_scalar,
    check_scalars,
    check_span,
    check_text,
    kind_of,
)
from sender.errors import InvalidSegmentError
from sender.model import Environment

ORDER = ("<", "<=", ">", ">=")
OPERATORS = ("=", "!=", *ORDER, "in", "contains")
MOST_CONDITIONS = 1_000
_MOST_FAULTS = 100  # that an error lists


def write(segment: seg.Segment) -> dict[str, Any]:
    """The canonical JSON of a segment: equal segments give equal JSON."""
    match segment:
        case seg.Everyone():
            return {"all": True}
        case seg.OneOf(attribute=name, values=values):
            return {"attribute": name, "in": list(values)}
        case seg.Compare(attribute=name, operator=operator, value=value):
            return {"attribute": name, operator: value}
        case seg.Contains(attribute=name, value=value):
            return {"attribute": name, "contains": value}
        case seg.Field(field=field, values=values):
            return {field: values[0] if field == "environment" else list(values)}
        case seg.Span(field=field, after=after, before=before):
            ends = {"after": after, "before": before}
            return {field: {end: _write_moment(moment) for end, moment in ends.items() if moment is not None}}
        case seg.Percentage(percent=percent, seed=seed):
            return {"percentage": percent, "seed": seed}
        case seg.NotSent(key=key, or_unknown=or_unknown):
            return {"not_sent": key, "or_unknown": True} if or_unknown else {"not_sent": key}
        case seg.And(parts=parts) | seg.Or(parts=parts):
            return {segment.word: [write(part) for part in parts]}
        case seg.Not(part=part):
            return {"not": write(part)}
    raise TypeError(f"not a segment: {type(segment).__name__}")


def ordered(items: Iterable[Any]) -> list[Any]:
    """Values or segments in a canonical order, without repeats."""
    by_text = {
        json.dumps(write(item) if isinstance(item, seg.Segment) else item, sort_keys=True): item for item in items
    }
    return [item for _, item in sorted(by_text.items())]


def read(document: Any) -> seg.Segment:
    """A segment from JSON. Raises `InvalidSegmentError` with all faults."""
    faults: list[str] = []
    segment = _read(document, "segment", faults, 0) or seg.Everyone()
    if not faults and (conditions := _conditions(segment)) > MOST_CONDITIONS:
        faults.append(f"segment: {conditions:,} conditions; at most {MOST_CONDITIONS:,}: use lists of values")
    if faults:
        raise InvalidSegmentError("segment", _first(faults))
    return segment


def _conditions(segment: seg.Segment) -> int:
    match segment:
        case seg.And(parts=parts) | seg.Or(parts=parts):
            return sum(map(_conditions, parts))
        case seg.Not(part=part):
            return _conditions(part)
        case _:
            return 1


def _first(faults: list[str]) -> list[str]:
    more = len(faults) - _MOST_FAULTS
    return faults if more <= 0 else [*faults[:_MOST_FAULTS], f"and {more:,} more"]


def _read(document: Any, path: str, faults: list[str], depth: int) -> seg.Segment | None:
    if depth > seg.DEEPEST:
        faults.append(f"{path}: nested deeper than {seg.DEEPEST}")
        return None
    if isinstance(document, seg.Segment):
        return document
    if not isinstance(document, Mapping):
        faults.append(f'{path}: must be an object such as {{"attribute": "plan", "in": ["pro"]}}')
        return None
    heads = [head for head in _READERS if head in document]
    if len(heads) != 1:
        names = ", ".join(_READERS)
        faults.append(f"{path}: must have exactly one of {names}; it has {_shown(document)}")
        return None
    return _READERS[heads[0]](document, heads[0], path, faults, depth)


def _read_all(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    _only(document, {"all"}, path, faults)
    if document["all"] is not True:
        faults.append(f"{path}.all: must be true")
    return seg.Everyone()


def _read_attribute(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    name = document["attribute"]
    operators = [key for key in document if key != "attribute"]
    wrong = [f"{path}.{fault}" for fault in check_attribute(name)]
    if len(operators) != 1 or operators[0] not in OPERATORS:
        wrong.append(f"{path}: an attribute takes exactly one of {' '.join(OPERATORS)}; it has {_shown(operators)}")
        faults += wrong
        return seg.Everyone()
    operator = operators[0]
    value = document[operator]
    if operator == "in":
        wrong += check_scalars(f"{path}.in", value) if isinstance(value, list) else [f"{path}.in: must be a list"]
    elif operator in ORDER:
        ordered = isinstance(value, str | int | float) and not isinstance(value, bool)
        wrong += (
            check_scalar(f"{path}.{operator}", value)
            if ordered
            else [f"{path}.{operator}: compares with a number or a text, not with {kind_of(value)}"]
        )
    else:
        wrong += check_scalar(f"{path}.{operator}", value)
    faults += wrong
    return seg.Everyone() if wrong else _attribute(name, operator, value)


def _attribute(name: str, operator: str, value: Any) -> seg.Segment:
    match operator:
        case "in":
            return seg.OneOf(attribute=name, values=tuple(value))
        case "=":
            return seg.OneOf(attribute=name, values=(value,))
        case "!=":
            return seg.Not(part=seg.OneOf(attribute=name, values=(value,)))
        case "contains":
            return seg.Contains(attribute=name, value=value)
        case _:
            return seg.Compare(attribute=name, operator=operator, value=value)


def _read_field(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    _only(document, {head}, path, faults)
    value = document[head]
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or not values:
        faults.append(f"{path}.{head}: must be a text or a list of texts, not empty")
        return seg.Everyone()
    if len(values) > LONGEST_LIST:
        faults.append(f"{path}.{head}: {len(values):,} values; at most {LONGEST_LIST:,}")
    wrong = [fault for item in values for fault in check_text(f"{path}.{head}", item)]
    if head == "environment" and not wrong:
        allowed = [str(environment) for environment in Environment]
        if len(values) != 1 or values[0] not in allowed:
            wrong.append(f"{path}.environment: must be one of {', '.join(allowed)}")
    faults += wrong
    return seg.Everyone() if wrong else seg.Field(field=head, values=tuple(dict.fromkeys(_normal(head, values))))


def _read_span(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    _only(document, {head}, path, faults)
    value = document[head]
    if not isinstance(value, Mapping) or not set(value) <= {"after", "before"}:
        faults.append(f'{path}.{head}: must be {{"after": …}}, {{"before": …}} or both')
        return seg.Everyone()
    wrong: list[str] = []
    ends = {end: _read_moment(moment, f"{path}.{head}.{end}", wrong) for end, moment in value.items()}
    after, before = ends.get("after"), ends.get("before")
    wrong = wrong or [f"{path}.{fault}" for fault in check_span(head, after, before)]
    faults += wrong
    return seg.Everyone() if wrong else seg.Span(field=head, after=after, before=before)


def _read_percentage(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    _only(document, {"percentage", "seed"}, path, faults)
    percent, seed = document["percentage"], document.get("seed", "")
    wrong: list[str] = []
    number = isinstance(percent, int | float) and not isinstance(percent, bool)
    if not number or not 0 <= percent <= 100:
        wrong.append(f"{path}.percentage: must be a number from 0 to 100")
    if seed != "":
        wrong += check_text(f"{path}.seed", seed)
    faults += wrong
    return seg.Everyone() if wrong else seg.Percentage(percent=float(percent), seed=seed)


def _read_not_sent(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    _only(document, {"not_sent", "or_unknown"}, path, faults)
    faults += check_text(f"{path}.not_sent", document["not_sent"])
    or_unknown = document.get("or_unknown", False)
    if not isinstance(or_unknown, bool):
        faults.append(f"{path}.or_unknown: must be true or false")
    return seg.NotSent(key=document["not_sent"], or_unknown=or_unknown is True)


def _read_joined(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    _only(document, {head}, path, faults)
    items = document[head]
    if not isinstance(items, list) or not items:
        faults.append(f"{path}.{head}: must be a list of segments, not empty")
        return seg.Everyone()
    parts = [_read(item, f"{path}.{head}[{index}]", faults, depth + 1) for index, item in enumerate(items)]
    kind = seg.And if head == "and" else seg.Or
    return kind(parts=tuple(part for part in parts if part is not None))


def _read_not(document: Mapping[str, Any], head: str, path: str, faults: list[str], depth: int) -> seg.Segment:
    _only(document, {"not"}, path, faults)
    part = _read(document["not"], f"{path}.not", faults, depth + 1)
    return seg.Not(part=part or seg.Everyone())


_READERS: dict[str, Callable[[Mapping[str, Any], str, str, list[str], int], seg.Segment]] = {
    "all": _read_all,
    "attribute": _read_attribute,
    "locale": _read_field,
    "language": _read_field,
    "timezone": _read_field,
    "environment": _read_field,
    "user": _read_field,
    "registered": _read_span,
    "last_seen": _read_span,
    "percentage": _read_percentage,
    "not_sent": _read_not_sent,
    "and": _read_joined,
    "or": _read_joined,
    "not": _read_not,
}


def _normal(field: str, values: list[str]) -> list[str]:
    return [value.replace("_", "-").lower() for value in values] if field in ("locale", "language") else values


def _write_moment(moment: seg.Moment) -> Any:
    if isinstance(moment, timedelta):
        return {"ago": moment.total_seconds()}
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _read_moment(value: Any, path: str, faults: list[str]) -> seg.Moment | None:
    try:
        if isinstance(value, Mapping) and set(value) == {"ago"} and not isinstance(value["ago"], bool):
            return timedelta(seconds=value["ago"])
        if isinstance(value, str):
            return datetime.fromisoformat(value)
    except (ValueError, TypeError, OverflowError):
        pass
    faults.append(f'{path}: must be ISO 8601 with a zone (2027-01-01T00:00:00+00:00) or {{"ago": seconds}}')
    return None


def _only(document: Mapping[str, Any], allowed: set[str], path: str, faults: list[str]) -> None:
    faults += [f"{path}: unknown key {_shown([key])}" for key in document if key not in allowed]


def _shown(keys: Any) -> str:
    shown = [repr(key)[:40] for key in keys]
    return ", ".join(shown[:8]) + (" …" if len(shown) > 8 else "") if shown else "none"
