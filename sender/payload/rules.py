"""What APNs or the device would refuse in a payload or its headers, as a table of `aps` keys and a few functions.

Each function returns faults as text: a person sees all of them at once. Source: Apple, "Generating a remote
notification", "Sending notification requests to APNs", and the ActivityKit documentation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sender.model import PushType

LONGEST_COLLAPSE_ID = 64  # bytes
DEEPEST = 50
LEVELS = ("passive", "active", "time-sensitive", "critical")
EVENTS = ("start", "update", "end")
#: Keys that only a Live Activity has.
ACTIVITY_KEYS = (
    "timestamp",
    "event",
    "content-state",
    "stale-date",
    "dismissal-date",
    "attributes-type",
    "attributes",
    "input-push-token",
    "input-push-channel",
)
#: Push types whose body need not have an `aps` dictionary with something to show in it.
_FREE = frozenset(
    {
        PushType.VOIP,
        PushType.MDM,
        PushType.COMPLICATION,
        PushType.FILEPROVIDER,
        PushType.LOCATION,
        PushType.PUSHTOTALK,
        PushType.WIDGETS,
        PushType.CONTROLS,
    }
)

Rule = Callable[[Any], "str | None"]


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) and value else "must be a text, not empty"


def _any_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be a text"


def _texts(value: Any) -> str | None:
    good = isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
    return None if good else "must be a list of texts"


def _flag(value: Any) -> str | None:
    return None if not isinstance(value, bool) and value in (0, 1) else "must be 1"


def _whole(value: Any) -> str | None:
    return None if _is_int(value) and value >= 0 else "must be a whole number, 0 or more"


def _seconds(value: Any) -> str | None:
    good = _is_int(value) and 0 <= value < 10**11
    return None if good else "must be an aware datetime, or Unix time in seconds"


def _number(value: Any) -> str | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
    return None if good else "must be a number"


def _dictionary(value: Any) -> str | None:
    return None if isinstance(value, Mapping) else "must be a dictionary"


def _one_of(*words: str) -> Rule:
    return lambda value: None if value in words else f"must be one of {', '.join(words)}"


ALERT: dict[str, Rule] = {
    "title": _any_text,
    "subtitle": _any_text,
    "body": _any_text,
    "launch-image": _text,
    "loc-key": _text,
    "loc-args": _texts,
    "title-loc-key": _text,
    "title-loc-args": _texts,
    "subtitle-loc-key": _text,
    "subtitle-loc-args": _texts,
    "action-loc-key": _text,  # of old, still sent
    "summary-arg": _any_text,
    "summary-arg-count": _whole,
}

APS: dict[str, Rule] = {
    "badge": _whole,
    "thread-id": _text,
    "category": _text,
    "content-available": _flag,
    "mutable-content": _flag,
    "target-content-id": _text,
    "interruption-level": _one_of(*LEVELS),
    "relevance-score": _number,
    "filter-criteria": _text,
    "timestamp": _seconds,
    "event": _one_of(*EVENTS),
    "content-state": _dictionary,
    "stale-date": _seconds,
    "dismissal-date": _seconds,
    "attributes-type": _text,
    "attributes": _dictionary,
    "input-push-token": _flag,
    "input-push-channel": _text,
}


def find_push_type(given: PushType | str | None, document: Mapping[str, Any]) -> tuple[PushType, list[str]]:
    """The push type that was asked for, or that the content implies."""
    if given is not None:
        try:
            return PushType(given), []
        except ValueError:
            return PushType.ALERT, [f"push type: must be one of {', '.join(PushType)}, not {str(given)[:40]!r}"]
    aps = document.get("aps")
    if not isinstance(aps, Mapping):
        return (PushType.MDM if "mdm" in document else PushType.ALERT), []
    if "event" in aps or "content-state" in aps:
        return PushType.LIVEACTIVITY, []
    if aps.get("content-available") and not _visible(aps):
        return PushType.BACKGROUND, []
    return PushType.ALERT, []


def check_json(document: Mapping[str, Any]) -> list[str]:
    """Whatever is not JSON, or not JSON that can be stored: where it is and why."""
    return list(_walk(document, "", 0))


def check_document(document: Mapping[str, Any], push_type: PushType) -> list[str]:
    """Whatever is wrong with the `aps` dictionary for this push type."""
    aps = document.get("aps", {} if push_type in _FREE else None)
    if not isinstance(aps, Mapping):
        return ['"aps" is missing' if aps is None else f'"aps": must be a dictionary, not {type(aps).__name__}']
    faults = [f"aps.{key}: {fault}" for key, rule in APS.items() if key in aps and (fault := rule(aps[key]))]
    faults += _check_alert(aps) + _check_sound(aps) + _check_spelling(aps)
    if push_type is PushType.LIVEACTIVITY:
        return faults + _check_activity(aps)
    score = aps.get("relevance-score")
    if score is not None and _number(score) is None and not 0 <= score <= 1:
        faults.append("aps.relevance-score: must be from 0 to 1")
    faults += [f"aps.{key}: belongs to push type liveactivity" for key in ACTIVITY_KEYS if key in aps]
    if push_type is PushType.BACKGROUND:
        faults += _check_background(aps)
    elif push_type is PushType.ALERT and not _visible(aps):
        faults.append("an alert push needs an alert, a badge or a sound")
    return faults


def check_headers(push_type: PushType, priority: Any, collapse_id: Any) -> list[str]:
    """Whatever is wrong with the priority and the collapse id."""
    faults: list[str] = []
    if not _is_int(priority) or priority not in (10, 5, 1):
        faults.append(f"priority: must be 10, 5 or 1, not {priority!r}")
    elif push_type is PushType.BACKGROUND and priority != 5:
        faults.append("priority: a background push must have 5")
    if collapse_id is None:
        return faults
    if not isinstance(collapse_id, str) or not collapse_id:
        return [*faults, "collapse id: must be a text, not empty (None turns it off)"]
    size = len(collapse_id.encode(errors="replace"))
    if size > LONGEST_COLLAPSE_ID:
        faults.append(f"collapse id: {size} bytes; APNs takes at most {LONGEST_COLLAPSE_ID}")
    if not collapse_id.isascii() or not collapse_id.isprintable() or collapse_id != collapse_id.strip():
        faults.append("collapse id: must be printable ASCII: it travels as a header")
    return faults


def _check_alert(aps: Mapping[str, Any]) -> list[str]:
    alert = aps.get("alert")
    if alert is None or isinstance(alert, str):
        return ["aps.alert: must not be null"] if "alert" in aps and alert is None else []
    if not isinstance(alert, Mapping):
        return [f"aps.alert: must be a text or a dictionary, not {type(alert).__name__}"]
    faults = [
        f"aps.alert.{key}: {fault}" for key, rule in ALERT.items() if key in alert and (fault := rule(alert[key]))
    ]
    if aps.get("event") in EVENTS:  # a Live Activity's texts may be {"loc-key", "loc-args"}
        faults = [fault for fault in faults if not isinstance(alert.get(fault.split(":")[0].split(".")[2]), Mapping)]
    if not alert:
        faults.append("aps.alert: is empty")
    misspelt = [key for key in alert if isinstance(key, str) and key not in ALERT and _hyphens(key) in ALERT]
    return faults + [f'aps.alert.{key}: is spelt "{_hyphens(key)}"' for key in misspelt]


def _check_sound(aps: Mapping[str, Any]) -> list[str]:
    sound = aps.get("sound")
    if "sound" not in aps or (isinstance(sound, str) and sound):
        return []
    if not isinstance(sound, Mapping):
        return ["aps.sound: must be the name of a sound file, or a dictionary with critical, name and volume"]
    faults = []
    if "name" in sound and _text(sound["name"]):
        faults.append("aps.sound.name: must be a text, not empty")
    if "critical" in sound and _flag(sound["critical"]):
        faults.append("aps.sound.critical: must be 1")
    volume = sound.get("volume", 1)
    if _number(volume) or not 0 <= volume <= 1:
        faults.append("aps.sound.volume: must be from 0 to 1")
    return faults


def _check_background(aps: Mapping[str, Any]) -> list[str]:
    faults = []
    if not aps.get("content-available"):
        faults.append("a background push needs content-available 1")
    shown = [key for key in ("alert", "badge", "sound") if key in aps]
    if shown:
        faults.append(f"a background push has no {', '.join(shown)}: use push type alert")
    return faults


def _check_activity(aps: Mapping[str, Any]) -> list[str]:
    needed = ["timestamp", "event"]
    if aps.get("event") in ("start", "update"):
        needed.append("content-state")
    if aps.get("event") == "start":
        needed += ["attributes-type", "attributes", "alert"]
    faults = [f"aps.{key}: is missing, a Live Activity needs it" for key in needed if key not in aps]
    if aps.get("event") != "start":
        starts = ("input-push-token", "input-push-channel")
        faults += [f"aps.{key}: belongs to the event start" for key in starts if key in aps]
    if "input-push-token" in aps and "input-push-channel" in aps:
        faults.append("aps: input-push-token and input-push-channel exclude each other")
    return faults


def _check_spelling(aps: Mapping[str, Any]) -> list[str]:
    """Unknown keys are let through (Apple adds some), but not known ones with underscores, which do nothing."""
    known = {**APS, "alert": None, "sound": None}
    return [
        f'aps.{key}: is spelt "{_hyphens(key)}"'
        for key in aps
        if isinstance(key, str) and key not in known and _hyphens(key) in known
    ]


def _walk(value: Any, path: str, depth: int) -> Iterator[str]:  # noqa: PLR0912 - a row for each kind of value
    where = path or "payload"
    if depth > DEEPEST:
        yield f"{where}: nested deeper than {DEEPEST}"
        return
    match value:
        case None | bool():
            return
        case int():
            if abs(value) >= 2**63:
                yield f"{where}: the number is too large"
        case str():
            yield from _walk_text(value, where)
        case float():
            if not math.isfinite(value):
                yield f"{where}: {value} is not a number that JSON knows"
        case Mapping():
            for key, item in value.items():
                if not isinstance(key, str):
                    yield f"{where}: the key {str(key)[:40]!r} is not a text"
                    continue
                inner = f"{path}.{key[:40]}" if path else key[:40]
                yield from _walk_text(key, inner.encode(errors="replace").decode())
                yield from _walk(item, inner, depth + 1)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _walk(item, f"{path}[{index}]", depth + 1)
        case _:
            yield f"{where}: {type(value).__name__} is not JSON: pass texts, numbers, true, false, null, lists or dicts"


def _walk_text(value: str, where: str) -> Iterator[str]:
    if any("\ud800" <= character <= "\udfff" for character in value):
        yield f"{where.encode(errors='replace').decode()}: holds half a surrogate pair, which is no UTF-8"
    if "\x00" in value:
        yield f"{where.replace(chr(0), '?')}: holds a NUL character"


def _visible(aps: Mapping[str, Any]) -> bool:
    return any(key in aps for key in ("alert", "badge", "sound"))


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _hyphens(key: str) -> str:
    return key.replace("_", "-")
