"""Arguments of the public verbs are of the plain types that their annotations say, and numbers are finite, before any
server sees them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from enum import StrEnum
from functools import wraps
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from types import FunctionType, NoneType
from typing import Any, TypeVar

from sender.audience import Segment
from sender.errors import InvalidInputError

AnyClass = TypeVar("AnyClass", bound=type)
AnyEnum = TypeVar("AnyEnum", bound=StrEnum)

#: The annotations that are checked, alone or with | between them, and how they are called in an error.
_PLAIN: dict[str, tuple[type, str]] = {
    "str": (str, "a text"),
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "datetime": (datetime, "a datetime"),
    "Path": (Path, "a path"),
    "Segment": (Segment, "a Segment"),
    "Sequence[str]": (Iterable, "a sequence of texts"),
    "None": (NoneType, "None"),
}


def check_arguments(*, but: Collection[str] = ()) -> Callable[[AnyClass], AnyClass]:
    """Have the verbs of a class refuse arguments of other types with `InvalidInputError`. `but`: those that say
    themselves all that is wrong with theirs."""

    def decorate(nouns: AnyClass) -> AnyClass:
        for name, verb in list(vars(nouns).items()):
            if isinstance(verb, FunctionType) and not name.startswith("_") and name not in but:
                setattr(nouns, name, _checked(verb))
        return nouns

    return decorate


def one_of(kind: type[AnyEnum], name: str, value: object, *, of: str) -> AnyEnum:
    """The member that a value names. Raises `InvalidInputError` with those that there are."""
    try:
        return kind(str(value).strip().lower())
    except ValueError:
        allowed = ", ".join(kind)
        raise InvalidInputError(of, [f"{name} {str(value)[:40]!r} is none of {allowed}"]) from None


def _checked(verb: FunctionType) -> Callable[..., Any]:
    signature = inspect.signature(verb)
    annotated = {name: str(each.annotation).split(" | ") for name, each in signature.parameters.items()}
    plain = {name: [_PLAIN[part] for part in parts] for name, parts in annotated.items() if _PLAIN.keys() >= {*parts}}

    @wraps(verb)
    def call(*args: Any, **given: Any) -> Any:
        bound = signature.bind(*args, **given).arguments
        faults = [
            f"{name} must be {' or '.join(words for _, words in kinds)}, not {type(bound[name]).__name__}"
            for name, kinds in plain.items()
            if name in bound and not _is_one(bound[name], [kind for kind, _ in kinds])
        ]
        faults += [
            f"{name} must be a finite number" + (f", not {bound[name]}" if isinstance(bound[name], float) else "")
            for name, kinds in plain.items()
            if _PLAIN["float"] in kinds and name in bound and not _is_finite(bound[name])
        ]
        if faults:
            raise InvalidInputError(verb.__name__, faults)
        return verb(*args, **given)

    return call


def _is_finite(value: object) -> bool:
    """Whether a number is one that a float holds; what is no number is somebody else's fault to name."""
    try:
        return not isinstance(value, Real) or isfinite(value)
    except OverflowError:
        return False


def _is_one(value: object, kinds: list[type]) -> bool:
    return isinstance(value, tuple(kinds)) and (not isinstance(value, bool) or bool in kinds)
