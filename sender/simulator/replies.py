"""What goes back for one request: prepared values, so that answering costs nothing but sending."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import lru_cache


class Act(Enum):
    """What the connection does with a reply."""

    ANSWER = auto()
    NOTHING = auto()  # the stream stays open and unanswered
    RESET = auto()
    RESET_AFTER_HEADERS = auto()
    DROP = auto()  # the connection is cut


class IdForm(Enum):
    """How apns-id comes back."""

    AS_SENT = auto()
    MISSING = auto()
    UPPER_CASE = auto()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reply:
    """One decision. `key` is what it counts as; `delivered` whether the device gets the notification."""

    key: tuple[int, str]  # status (0: none was sent) and reason, or what happened instead
    delivered: bool = False
    act: Act = Act.ANSWER
    body: bytes = b""
    code: int = 0  # of RST_STREAM
    id_form: IdForm = IdForm.AS_SENT
    delay: float = 0.0  # seconds, on top of the scenario's latency
    status: bytes = b"200"
    outcome: tuple[int, str, bool] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcome", (*self.key, self.delivered))


ACCEPTED = Reply(key=(200, ""), delivered=True)
NO_APNS_ID = Reply(key=(200, ""), delivered=True, id_form=IdForm.MISSING)
UPPER_CASE_ID = Reply(key=(200, ""), delivered=True, id_form=IdForm.UPPER_CASE)
REFUSED = Reply(key=(0, "refused"), act=Act.RESET, code=7)
SILENT = Reply(key=(0, "silent"), act=Act.NOTHING)
ANSWER_LOST = Reply(key=(0, "answer_lost"), act=Act.NOTHING, delivered=True)
DROPPED_BEFORE = Reply(key=(0, "dropped_before"), act=Act.DROP)
DROPPED_AFTER = Reply(key=(0, "dropped_after"), act=Act.DROP, delivered=True)
NOT_PROCESSED = Reply(key=(0, "above_goaway"), act=Act.NOTHING)

#: What a reply becomes when the request would not have been delivered anyway.
UNDELIVERED_TWIN = {ANSWER_LOST: SILENT, DROPPED_AFTER: DROPPED_BEFORE}

#: Apple's usual reason of a status, where a scenario names none.
USUAL_REASON = {
    400: "BadDeviceToken",
    403: "InvalidProviderToken",
    404: "BadPath",
    405: "MethodNotAllowed",
    410: "Unregistered",
    413: "PayloadTooLarge",
    429: "TooManyRequests",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}


@lru_cache(maxsize=1024)
def rejection(status: int, reason: str, *, delay: float = 0.0) -> Reply:
    """An error with its JSON body; an empty reason sends no body."""
    body = json.dumps({"reason": reason}, separators=(",", ":")).encode() if reason else b""
    return Reply(key=(status, reason), status=b"%d" % status, body=body, delay=delay)


@lru_cache(maxsize=1024)
def gone(reason: str, timestamp_ms: int) -> Reply:
    """A 410 with the moment at which APNs last knew the token to be valid, in milliseconds."""
    body = json.dumps({"reason": reason, "timestamp": timestamp_ms}, separators=(",", ":")).encode()
    return Reply(key=(410, reason), status=b"410", body=body)


@lru_cache(maxsize=256)
def reset(code: int, *, after_headers: bool = False) -> Reply:
    """RST_STREAM with this code: instead of an answer, or after a 200's headers (the push is then delivered)."""
    if after_headers:
        return Reply(key=(0, "reset_after_headers"), act=Act.RESET_AFTER_HEADERS, code=code, delivered=True)
    return Reply(key=(0, "reset"), act=Act.RESET, code=code)


@lru_cache(maxsize=256)
def accepted_after(delay: float) -> Reply:
    """A 200 that takes `delay` seconds longer than others."""
    return Reply(key=(200, ""), delivered=True, delay=delay)
