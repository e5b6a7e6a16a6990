"""What APNs says, as values: statuses, error bodies, the reason of a GOAWAY. Nothing of it is trusted: a server that is
no APNs may say anything.

Apple, "Handling notification responses from APNs"; RFC 9113, 6.8 and 7.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from ngh2 import ErrorCode, Header

from sender.apns.batch import Slot
from sender.model import ACCEPTED, Accepted, Answer, Rejected

_LATEST = 7_258_118_400_000  # milliseconds: the year 2200; a later timestamp is none


class Reply:
    """A response that did not end with its headers: an error, whose body is to come."""

    LONGEST_BODY = 4096  # bytes of it that are kept
    __slots__ = ("batch", "body", "place", "status", "unique_id")

    def __init__(self, slot: Slot, status: int, unique_id: str | None) -> None:
        self.batch, self.place = slot
        self.status = status
        self.unique_id = unique_id
        self.body = b""

    def add(self, data: bytes) -> None:
        """More of the body."""
        if len(self.body) < self.LONGEST_BODY:
            self.body += data

    def answer(self) -> Answer:
        """What it says, as far as it came."""
        if self.status == 200:
            return Accepted(apns_unique_id=self.unique_id) if self.unique_id else ACCEPTED
        return rejected(self.status, self.body, self.unique_id)


def accepted(headers: Sequence[Header]) -> Accepted:
    """An acceptance, with the apns-unique-id that the development environment gives."""
    for name, value in headers:
        if name == b"apns-unique-id":
            return Accepted(apns_unique_id=value.decode("ascii", "replace"))
    return ACCEPTED


def parse_headers(headers: Sequence[Header]) -> tuple[int, str | None]:
    """Status and apns-unique-id. A status that is no number, which libnghttp2 lets nobody send, counts as 0."""
    status, unique_id = 0, None
    for name, value in headers:
        if name == b":status":
            status = int(value) if value.isdigit() else 0
        elif name == b"apns-unique-id":
            unique_id = value.decode("ascii", "replace")
    return status, unique_id


@lru_cache(maxsize=128)
def rejected(status: int, body: bytes, unique_id: str | None) -> Rejected:
    """A rejection; most are one of very few values."""
    reason, timestamp = parse_error(body)
    return Rejected(status=status, reason=reason, timestamp=timestamp, apns_unique_id=unique_id)


def parse_error(body: bytes) -> tuple[str, datetime | None]:
    """Reason and timestamp of an error body; empty when it is missing or not what Apple documents."""
    if not body:
        return "", None
    try:
        parsed = json.loads(body)
        reason, timestamp = parsed.get("reason", ""), parsed.get("timestamp")
        if not isinstance(reason, str):
            reason = ""
    except (ValueError, AttributeError, RecursionError):
        return "", None
    return _printable(reason), _parse_timestamp(timestamp)


def _parse_timestamp(value: Any) -> datetime | None:
    """Milliseconds since 1970, when they are a time that can be (and that PostgreSQL and every zone can show)."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < _LATEST:
        return None
    return datetime.fromtimestamp(value / 1000, UTC)


def _printable(text: str) -> str:
    """The beginning of what a server said, without what a database, a log or a terminal chokes on."""
    return "".join(each for each in text[:100] if each.isprintable()).strip()


def parse_goaway(code: int, debug: bytes) -> str:
    """What a GOAWAY says: the reason in its debug data when that is JSON, the data itself when not, else its code."""
    try:
        reason = json.loads(debug)["reason"]
        if isinstance(reason, str) and _printable(reason):
            return _printable(reason)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    text = _printable(debug[:100].decode("utf-8", "replace"))
    return f"{error_name(code)}: {text}" if text else error_name(code)


def at_its_own_ends(goaway: str) -> bool:
    """Whether a GOAWAY without an error code says nothing against us."""
    return goaway in ("Shutdown", "IdleTimeout") or goaway.startswith(ErrorCode.NO_ERROR.name)


def error_name(code: int) -> str:
    """The RFC's name of an error code, or its number."""
    try:
        return ErrorCode(code).name
    except ValueError:
        return f"code {code}"


def describe(error: BaseException) -> str:
    """An exception in few words; never empty."""
    return str(error) or type(error).__name__
