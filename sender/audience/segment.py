"""Segment: which devices of an app a campaign is for. Says it only; the SQL is made in `sender.store.segments`.

Segments are values: frozen, comparable, and the same after a round trip through JSON. They combine with `&`, `|` and
`~`. A condition on something that a device does not have is false, so its negation (`~`) is true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeAlias

from sender.audience.checks import check_attribute, check_scalars, check_span
from sender.errors import InvalidSegmentError
from sender.model import Environment

#: What an attribute can be compared with.
Scalar: TypeAlias = str | int | float | bool | None
#: A point in time: absolute, or that long before the campaign's start.
Moment: TypeAlias = datetime | timedelta

#: Columns of a device: not attributes, so `where` and `--where` do not look for an attribute of that name.
FIELDS = ("locale", "language", "timezone", "environment", "user", "registered", "last_seen")
DEEPEST = 40


class Segment:
    """A set of devices. Made with the class methods below, or read with `from_json`; an app's whole list is `all()`.

    Every constructor raises `InvalidSegmentError` with all faults of its arguments.
    """

    __slots__ = ()

    @staticmethod
    def all() -> Segment:
        """Every device of the app."""
        return Everyone()

    @staticmethod
    def where(**attributes: Scalar | Sequence[Scalar]) -> Segment:
        """Devices with all these attributes; a list stands for any of its values, None for "has none".

        Values are compared with their type: 1 equals 1.0 and neither "1" nor True.
        """
        parts: list[Segment] = []
        faults: list[str] = []
        for name, value in attributes.items():
            if name in FIELDS:
                faults.append(
                    f"{name} is a field of the device, not an attribute: use Segment.{_constructor(name)}(…), "
                    f"or Segment.one_of({name!r}, [value]) for an attribute of that name"
                )
                continue
            values: list[Any] = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
            wrong = check_attribute(name) + check_scalars(name, values)
            faults += wrong
            if not wrong:
                parts.append(OneOf(attribute=name, values=tuple(values)))
        if not attributes:
            faults.append("where() names no attribute: use Segment.all() for every device")
        _refuse(faults)
        return parts[0] if len(parts) == 1 else And(parts=tuple(parts))

    @staticmethod
    def one_of(attribute: str, values: Iterable[Scalar]) -> Segment:
        """Devices whose attribute is one of the values."""
        return _read({"attribute": attribute, "in": list(values)})

    @staticmethod
    def contains(attribute: str, value: Scalar) -> Segment:
        """Devices whose attribute is a list that holds the value."""
        return _read({"attribute": attribute, "contains": value})

    @staticmethod
    def compare(attribute: str, operator: str, value: Scalar) -> Segment:
        """Devices whose attribute compares so: =, !=, <, <=, >, >=.

        Numbers compare with numbers, text with text (by code point, so that ISO dates sort); other types never match.
        """
        return _read({"attribute": attribute, operator: value})

    @staticmethod
    def locale(*locales: str) -> Segment:
        """Devices with one of these locales, such as fr-FR; case and `_` for `-` do not matter."""
        return _read({"locale": list(locales)})

    @staticmethod
    def language(*languages: str) -> Segment:
        """Devices whose locale has one of these languages: fr matches fr-FR and fr-CA."""
        return _read({"language": list(languages)})

    @staticmethod
    def timezone(*names: str) -> Segment:
        """Devices in one of these time zones, such as Europe/Paris."""
        return _read({"timezone": list(names)})

    @staticmethod
    def environment(environment: Environment | str) -> Segment:
        """Devices whose token is of this environment."""
        return _read({"environment": str(environment)})

    @staticmethod
    def users(*users: str | int) -> Segment:
        """Devices of these users, by the application's own ids."""
        return _read({"user": [str(user) if type(user) is int else user for user in users]})

    @staticmethod
    def registered(*, after: Moment | None = None, before: Moment | None = None) -> Segment:
        """Devices registered at or after, or before: an aware datetime, or a timedelta before the start."""
        return _span("registered", after, before)

    @staticmethod
    def last_seen(*, after: Moment | None = None, before: Moment | None = None) -> Segment:
        """Devices last seen at or after, or before: an aware datetime, or a timedelta before the start."""
        return _span("last_seen", after, before)

    @staticmethod
    def percentage(percent: float, seed: str = "") -> Segment:
        """A share of the devices, from 0 to 100: the same ones for a seed, and among those of any larger share."""
        return _read({"percentage": percent, "seed": seed})

    @staticmethod
    def not_sent(key: str, *, or_unknown: bool = False) -> Segment:
        """Devices to which the campaign of that key was not sent (APNs accepted no push of it); with `or_unknown`, nor
        may have been sent: those whose push had no answer are left out too."""
        return _read({"not_sent": key, "or_unknown": True} if or_unknown else {"not_sent": key})

    @staticmethod
    def from_json(document: Any) -> Segment:
        """Read what `to_json` wrote, or a person. Raises `InvalidSegmentError` with all faults and where they are."""
        return _read(document)

    def to_json(self) -> dict[str, Any]:
        """This segment as JSON; equal segments give equal JSON."""
        from sender.audience.segment_json import write

        return write(self)

    def campaign_keys(self) -> frozenset[str]:
        """The keys of other campaigns that this segment names."""
        return frozenset()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Segment) and self._text() == other._text()

    def __hash__(self) -> int:
        return hash(self._text())

    def _text(self) -> str:
        """What equality goes by: JSON, because Python's True equals its 1."""
        return json.dumps(self.to_json(), sort_keys=True)

    def __and__(self, other: Segment) -> Segment:
        return And(parts=_flat(And, self, other))

    def __or__(self, other: Segment) -> Segment:
        return Or(parts=_flat(Or, self, other))

    def __invert__(self) -> Segment:
        return self.part if isinstance(self, Not) else Not(part=self)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Everyone(Segment):
    """Every device."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OneOf(Segment):
    """Attribute equality and membership."""

    attribute: str
    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        _canonical(self, "values")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compare(Segment):
    """Attribute order: <, <=, >, >=. Equality is a `OneOf`, and != its negation."""

    attribute: str
    operator: str
    value: str | int | float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contains(Segment):
    """A list attribute that holds a value."""

    attribute: str
    value: Scalar


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Field(Segment):
    """A column that is one of the values: locale, language, timezone, environment, user."""

    field: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        _canonical(self, "values")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Span(Segment):
    """A time column within [after, before): registered, last_seen."""

    field: str
    after: Moment | None
    before: Moment | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Percentage(Segment):
    """A stable share."""

    percent: float
    seed: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NotSent(Segment):
    """Not reached by another campaign; with `or_unknown`, surely not reached."""

    key: str
    or_unknown: bool = False

    def campaign_keys(self) -> frozenset[str]:
        return frozenset({self.key})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Joined(Segment):
    parts: tuple[Segment, ...]

    def __post_init__(self) -> None:
        _canonical(self, "parts")

    def campaign_keys(self) -> frozenset[str]:
        return frozenset[str]().union(*(part.campaign_keys() for part in self.parts))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class And(_Joined):
    """All of them."""

    word: ClassVar[str] = "and"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Or(_Joined):
    """Any of them."""

    word: ClassVar[str] = "or"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Not(Segment):
    """The others."""

    part: Segment

    def campaign_keys(self) -> frozenset[str]:
        return self.part.campaign_keys()


def parse_where(text: str) -> Segment:
    """Read one `--where` condition: plan=pro, age>=18, plan!=free, plan in a,b, locale=fr-FR. See `where.py`."""
    from sender.audience.where import parse

    return parse(text)


def _canonical(segment: Segment, name: str) -> None:
    """Put members whose order has no meaning into one order, so that equal segments are equal values."""
    from sender.audience.segment_json import ordered

    object.__setattr__(segment, name, tuple(ordered(getattr(segment, name))))


def _read(document: Any) -> Segment:
    from sender.audience.segment_json import read

    return read(document)


def _span(field: str, after: Moment | None, before: Moment | None) -> Segment:
    _refuse(check_span(field, after, before))
    return Span(field=field, after=after, before=before)


def _flat(kind: type[And] | type[Or], left: Segment, right: Segment) -> tuple[Segment, ...]:
    for side in (left, right):
        if not isinstance(side, Segment):
            raise TypeError(f"a segment combines with a segment, not with {type(side).__name__}")
    parts = [part for side in (left, right) for part in (side.parts if isinstance(side, kind) else (side,))]
    return tuple(parts)


def _constructor(field: str) -> str:
    return "users" if field == "user" else field


def _refuse(faults: list[str]) -> None:
    if faults:
        raise InvalidSegmentError("segment", faults)
