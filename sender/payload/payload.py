"""Payload: what a push says, with a place for every key of the `aps` dictionary, and the bytes that go out.

Source: Apple, "Generating a remote notification" and "Starting and updating Live Activities with ActivityKit push
notifications". What APNs or the device would refuse is checked in `sender.payload.rules`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, TypeAlias

from sender.errors import InvalidPayloadError
from sender.model import PushType
from sender.payload.rules import LONGEST_COLLAPSE_ID, check_document, check_headers, check_json, find_push_type

#: The custom key under which every payload carries the campaign's key, so that the app can report opens.
RESERVED_KEY = "sender"
#: Largest body in bytes, measured on the bytes that go out.
MOST_BYTES = 4096
MOST_BYTES_VOIP = 5120
#: The collapse id is derived from the campaign's key, so that a repeat replaces instead of stacking.
AUTO = "auto"

Text: TypeAlias = str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """The visible text. The `loc` fields name strings of the app's own localisations."""

    title: Text = None
    subtitle: Text = None
    body: Text = None
    launch_image: Text = None
    loc_key: Text = None
    loc_args: Sequence[str] | None = None
    title_loc_key: Text = None
    title_loc_args: Sequence[str] | None = None
    subtitle_loc_key: Text = None
    subtitle_loc_args: Sequence[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `aps`."""
        return _present({_hyphens(part.name): getattr(self, part.name) for part in fields(self)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound:
    """A sound with more than a name. Critical ones need Apple's entitlement and sound through silent mode."""

    name: str = "default"
    critical: bool = False
    volume: float | None = None  # 0 (silent) to 1, critical sounds only

    def to_dict(self) -> dict[str, Any]:
        """As it stands in `aps`."""
        return _present({"critical": 1 if self.critical else None, "name": self.name, "volume": self.volume})


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """The body of a push. `data` are the custom keys, which stand beside `aps`.

    Times are aware datetimes or Unix seconds. Nothing is checked before `encode` (or an enqueue), which lists all
    faults at once.
    """

    alert: Alert | str | None = None
    badge: int | None = None  # 0 clears it
    sound: Sound | str | None = None
    thread_id: Text = None  # groups notifications
    category: Text = None  # of the app's actions
    content_available: bool = False  # wakes the app in the background
    mutable_content: bool = False  # goes through the app's notification service extension
    target_content_id: Text = None
    interruption_level: Text = None  # passive, active, time-sensitive, critical
    relevance_score: float | None = None  # 0 to 1
    filter_criteria: Text = None  # for Focus filters
    # Live Activities
    timestamp: datetime | int | None = None
    event: Text = None  # start, update, end
    content_state: Mapping[str, Any] | None = None
    stale_date: datetime | int | None = None
    dismissal_date: datetime | int | None = None
    attributes_type: Text = None
    attributes: Mapping[str, Any] | None = None
    input_push_token: bool = False  # start only: the app gets a token to update the activity with
    input_push_channel: Text = None  # start only: updates come over this broadcast channel

    data: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The payload as a dictionary, custom keys beside `aps`."""
        aps: dict[str, Any] = {}
        for part in fields(self):
            if part.name != "data":
                aps[_hyphens(part.name)] = _plain(part.name, getattr(self, part.name))
        return {"aps": _present(aps), **self.data}


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A payload that was checked, the bytes that go out, and what they imply for the headers."""

    document: dict[str, Any]  # without our reserved key
    body: bytes
    push_type: PushType
    priority: int
    collapse_id: str | None


def encode(
    payload: Payload | Mapping[str, Any],
    *,
    key: str | None,
    push_type: PushType | str | None = None,
    priority: int | None = None,
    collapse_id: str | None = AUTO,
) -> Encoded:
    """Check a payload and its headers, and give the bytes that go out.

    `key` is the campaign's, carried under `RESERVED_KEY` (None: a push without a campaign). Without a push type, the
    content says which: a Live Activity, a background push, or an alert. Raises `InvalidPayloadError` with all faults.
    """
    document, faults = _document(payload)
    kind, wrong = find_push_type(push_type, document)
    faults += wrong
    unfit = check_json(document)
    faults += unfit + check_document(document, kind)
    rank = priority if priority is not None else (5 if kind is PushType.BACKGROUND else 10)
    collapse = derive_collapse_id(key) if collapse_id == AUTO else collapse_id
    faults += check_headers(kind, rank, collapse)
    document, body = ({}, b"") if unfit else _write(document, key if kind is not PushType.MDM else None)
    faults += _check_size(document, body, kind)
    if faults:
        raise InvalidPayloadError("payload", faults)
    return Encoded(document=document, body=body, push_type=kind, priority=rank, collapse_id=collapse)


def to_bytes(document: Mapping[str, Any], key: str | None) -> bytes:
    """The body that goes out: compact UTF-8 JSON, with the campaign's key in it."""
    whole = dict(document) if key is None else {**document, RESERVED_KEY: {"campaign": key}}
    text = json.dumps(whole, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode(errors="replace")  # the document was checked; a key that is no UTF-8 is refused elsewhere


def _write(document: Mapping[str, Any], key: str | None) -> tuple[dict[str, Any], bytes]:
    """The document in dictionaries and lists of our own, and the bytes that go out."""
    plain = _copy(document)
    return plain, to_bytes(plain, key)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _copy(item) for name, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _check_size(document: Mapping[str, Any], body: bytes, push_type: PushType) -> list[str]:
    most = MOST_BYTES_VOIP if push_type is PushType.VOIP else MOST_BYTES
    if len(body) <= most:
        return []
    own = len(body) - len(to_bytes(document, None))
    note = f", {own} of them for the campaign's key" if own else ""
    return [f"{len(body)} bytes{note}; APNs takes at most {most}: {len(body) - most} too many"]


def derive_collapse_id(key: str | None) -> str | None:
    """The campaign's key where it can be a header of at most 64 bytes, else a digest of it."""
    if key is None:
        return None
    if len(key.encode(errors="replace")) <= LONGEST_COLLAPSE_ID and key.isascii() and key.isprintable():
        return key
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()[:40]


def _document(payload: Payload | Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The payload as a dictionary, and the faults of its custom keys."""
    if isinstance(payload, Payload):
        if not isinstance(payload.data, Mapping):
            return {"aps": {}}, [f"data: must be a dictionary, not {type(payload.data).__name__}"]
        faults = ['data: "aps" is not a custom key: use the fields of Payload'] if "aps" in payload.data else []
        document = payload.to_dict()
    elif isinstance(payload, Mapping):
        document, faults = dict(payload), []
    else:
        return {"aps": {}}, [f"must be a Payload or a dictionary, not {type(payload).__name__}"]
    if RESERVED_KEY in document:
        faults.append(f'"{RESERVED_KEY}" is reserved: every payload carries the campaign\'s key under it')
    return document, faults


def _plain(name: str, value: Any) -> Any:
    match value:
        case Alert() | Sound():
            return value.to_dict()
        case bool() if name in ("content_available", "mutable_content", "input_push_token"):
            return 1 if value else None
        case datetime() if value.tzinfo is not None:
            return int(value.timestamp())
        case _:
            return value


def _present(items: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in items.items() if value is not None}


def _hyphens(name: str) -> str:
    return name.replace("_", "-")
