"""What an enqueue asks for, checked whole before anything is written: every fault at once.

`content` is what makes two enqueues of one key the same: what was asked for, in a canonical form, defaults by name (so
that a changed default does not make a repeat another campaign).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, Final, Literal

from sender.audience import Segment
from sender.audience.canary import Canary
from sender.errors import InvalidInputError, InvalidPayloadError, InvalidSegmentError
from sender.model import PushType
from sender.payload import Encoded, Payload, encode
from sender.policy.pace import FASTEST, SLOWEST, is_rate
from sender.settings import Settings

DELIVERY_GUARANTEES = ("at_least_once", "at_most_once")
LONGEST_KEY = 200  # bytes
LONGEST_EXPIRATION = 366 * 86_400.0  # seconds; APNs itself stores for 30 days at most
LARGEST_BATCH = 5000


class Default(Enum):
    """Stands for a setting's value, where None has a meaning of its own."""

    DEFAULT = "default"


DEFAULT: Final = Default.DEFAULT
#: Pushes a second, None for no limit, or the setting's.
Rate = float | int | None | Literal[Default.DEFAULT]


class InvalidCampaignError(InvalidInputError):
    """Raised when a campaign cannot be sent as it was asked for; `faults` has everything that is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A campaign that was checked."""

    bundle_id: str
    key: str
    encoded: Encoded
    audience: Segment
    rate: float | None
    expires_in: float  # seconds from the start
    send_at: datetime | None
    grace: float
    batch_size: int
    delivery: str
    canary: Canary | None
    over: float | None  # seconds to spread it over: its start makes a rate of it
    finish_by: datetime | None
    exclude_sent: tuple[str, ...]  # campaigns whose devices are left out
    content: dict[str, Any]


def make_plan(
    settings: Settings,
    bundle_id: str,
    *,
    key: str,
    payload: Payload | Mapping[str, Any],
    audience: Segment,
    rate: Rate,
    expires_in: timedelta | float | None,
    send_at: datetime | None,
    grace: timedelta | float | None,
    batch_size: int | None,
    delivery: str,
    push_type: PushType | str | None,
    priority: int | None,
    collapse_id: str | None,
    canary: Canary | None = None,
    over: timedelta | float | None = None,
    finish_by: datetime | None = None,
    exclude_sent: Sequence[str] | str = (),
) -> Plan:
    """Check everything that needs no database. Raises `InvalidPayloadError`, `InvalidSegmentError` or
    `InvalidCampaignError`; the last when more than one of them would do, with all faults in it."""
    key_faults = check_key(key)
    errors: list[InvalidInputError] = []
    encoded: Encoded | None = None
    try:
        encoded = encode(
            payload,
            key=None if key_faults else key,
            push_type=push_type,
            priority=priority,
            collapse_id=collapse_id,
        )
    except InvalidPayloadError as error:
        errors.append(error)
    if not isinstance(audience, Segment):
        errors.append(InvalidSegmentError("audience", [f"must be a Segment, not {type(audience).__name__}"]))
    lasting, expires_faults = check_duration("expires_in", expires_in)
    waiting, grace_faults = check_duration("grace", grace)
    spread, over_faults = check_over(over)
    one = isinstance(exclude_sent, str) or not isinstance(exclude_sent, Iterable)
    excluded: tuple[Any, ...] = (exclude_sent,) if one else tuple(exclude_sent)
    faults = [
        *([] if isinstance(bundle_id, str) and bundle_id else ["the app's bundle id must be a text, not empty"]),
        *key_faults,
        *check_rate(rate),
        *over_faults,
        *(["rate and over exclude each other"] if over is not None and rate is not DEFAULT else []),
        *check_moment("finish_by", finish_by),
        *[f"exclude_sent: {fault}" for each in excluded for fault in check_key(each)],
        *expires_faults,
        *grace_faults,
        *check_moment("send_at", send_at),
        *_check_batch_size(batch_size),
        *(
            []
            if canary is None or isinstance(canary, Canary)
            else ["canary: must be a Canary, such as Canary(share=0.01)"]
        ),
        *([] if delivery in DELIVERY_GUARANTEES else [f"delivery: must be one of {', '.join(DELIVERY_GUARANTEES)}"]),
    ]
    if faults:
        errors.append(InvalidCampaignError("campaign", faults))
    _refuse(errors)
    assert encoded is not None  # noqa: S101 - there was no error
    for each in excluded:  # as sure as the campaign itself is asked to be
        audience &= Segment.not_sent(each, or_unknown=delivery == "at_most_once")
    content = {
        "app": bundle_id,
        "payload": encoded.document,
        "push_type": encoded.push_type.value,
        "priority": encoded.priority,
        "collapse_id": encoded.collapse_id,
        "audience": audience.to_json(),
        "rate": rate.value if isinstance(rate, Default) else rate,
        "expires_in": "default" if lasting is None else lasting,
        "send_at": send_at.astimezone(UTC).isoformat(timespec="microseconds") if send_at else None,
        "grace": "default" if waiting is None else waiting,
        "batch_size": "default" if batch_size is None else batch_size,
        "delivery": delivery,
    }
    if canary is not None:  # named only when it is there: an older campaign of the same content stays the same
        content["canary"] = canary.to_json()
    if spread is not None:
        content["over"] = spread
    if finish_by is not None:
        content["finish_by"] = finish_by.astimezone(UTC).isoformat(timespec="microseconds")
    return Plan(
        bundle_id=bundle_id,
        key=key,
        encoded=encoded,
        audience=audience,
        rate=None if spread is not None else settings.default_rate if isinstance(rate, Default) else rate,
        expires_in=settings.expires_in if lasting is None else lasting,
        send_at=send_at,
        grace=settings.start_grace if waiting is None else waiting,
        batch_size=settings.batch_size if batch_size is None else batch_size,
        delivery=delivery,
        canary=canary,
        over=spread,
        finish_by=finish_by,
        exclude_sent=excluded,
        content=content,
    )


_FIRST_YEAR, _LAST_YEAR = 1970, 2200


def check_key(key: Any) -> list[str]:
    """What is wrong with a campaign's key."""
    if not isinstance(key, str) or not key:
        return ["key: must be a text, not empty"]
    if any("\ud800" <= character <= "\udfff" for character in key) or not key.isprintable() or key != key.strip():
        return ["key: must be printable, without spaces at its ends"]
    size = len(key.encode())
    return [f"key: {size} bytes; at most {LONGEST_KEY}"] if size > LONGEST_KEY else []


def _refuse(errors: list[InvalidInputError]) -> None:
    if len(errors) == 1:
        raise errors[0]
    if errors:
        faults = [f"{error.what}: {fault}" for error in errors for fault in error.faults]
        raise InvalidCampaignError("campaign", faults)


def check_rate(rate: Any) -> list[str]:
    if rate is None or isinstance(rate, Default):
        return []
    if is_rate(rate):
        return []
    return [
        f"rate: must be more than 0 pushes a second (from {SLOWEST:.6f} to {FASTEST:,.0f}); None lifts the limit (on "
        "the command line: unlimited)"
    ]


def check_over(over: Any) -> tuple[float | None, list[str]]:
    """The seconds to spread a campaign over (None when not given), and what is wrong with them."""
    seconds, faults = check_duration("over", over)
    if seconds is not None and seconds < 1:
        return None, ["over: must be at least a second"]
    return seconds, faults


def check_moment(name: str, moment: Any) -> list[str]:
    """What is wrong with a time that must be aware."""
    if moment is None:
        return []
    if not isinstance(moment, datetime):
        return [f"{name}: must be a datetime, not {type(moment).__name__}"]
    if moment.tzinfo is None or moment.utcoffset() is None:
        return [
            f"{name}: has no time zone: pass an aware datetime, such as datetime(…, tzinfo=ZoneInfo('Europe/Paris'))"
        ]
    return [] if _FIRST_YEAR <= moment.year <= _LAST_YEAR else [f"{name}: {moment.year} is no year to send in"]


def _check_batch_size(size: Any) -> list[str]:
    if size is None or (isinstance(size, int) and not isinstance(size, bool) and 1 <= size <= LARGEST_BATCH):
        return []
    return [f"batch_size: must be a whole number from 1 to {LARGEST_BATCH}"]


def check_duration(name: str, value: Any, longest: float = LONGEST_EXPIRATION) -> tuple[float | None, list[str]]:
    """A duration in seconds (None when it is not given), and what is wrong with it."""
    if value is None:
        return None, []
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if not isinstance(seconds, int | float) or isinstance(seconds, bool):
        return None, [f"{name}: must be a timedelta, or seconds, not {type(value).__name__}"]
    if not 0 <= seconds <= longest:
        return None, [f"{name}: must be from 0 to {longest / 86_400:.0f} days"]
    return float(seconds), []
