"""What the simulated APNs does with a token: decided by a seeded hash of it, or by a rule that names it.

The hash makes every decision stable: the same whichever worker asks, in whatever order, with no table, so that a test
or a demo computes what must come out with `behaviour_of`.
"""

from __future__ import annotations

from bisect import bisect_right
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sender.model import Environment


class Behaviour(StrEnum):
    """How a token answers. The members' order is the order in which shares are laid over the hash."""

    UNREGISTERED = "unregistered"  # 410 Unregistered, timestamp: this moment
    STALE_UNREGISTERED = (
        "stale_unregistered"  # 410 Unregistered, timestamp: a year ago, so older than most registrations
    )
    EXPIRED_TOKEN = "expired_token"  # noqa: S105  410 ExpiredToken, timestamp: this moment
    BAD = "bad"  # 400 BadDeviceToken in both environments
    WRONG_TOPIC = "wrong_topic"  # 400 DeviceTokenNotForTopic
    OTHER_ENVIRONMENT = "other_environment"  # a sandbox token: 400 BadDeviceToken in production
    # Passing faults: the first `tries` tries of the token, then it is accepted.
    THROTTLED = "throttled"  # 429 TooManyRequests
    ERRORS = "errors"  # 500 InternalServerError or 503 ServiceUnavailable
    EMPTY_ERROR = "empty_error"  # 503 with no body
    REFUSED = "refused"  # RST_STREAM(REFUSED_STREAM): not processed
    RESET = "reset"  # RST_STREAM with the scenario's code, no answer, not delivered
    RESET_AFTER_HEADERS = "reset_after_headers"  # the 200's headers without END_STREAM, then RST_STREAM; delivered
    SILENT = "silent"  # never answered, not delivered
    ANSWER_LOST = "answer_lost"  # delivered, never answered
    DROPPED_BEFORE = "dropped_before"  # the connection is cut before the request was processed
    DROPPED_AFTER = "dropped_after"  # delivered, then the connection is cut
    # Accepted, oddly.
    SLOW = "slow"  # 200 after the scenario's slow_ms
    NO_APNS_ID = "no_apns_id"  # 200 without apns-id
    UPPER_CASE_ID = "upper_case_id"  # 200 with apns-id in upper case
    ACCEPTED = "accepted"  # 200: whatever the shares leave over


#: These end by themselves: after `tries` tries the token is accepted.
PASSING = frozenset(
    {
        Behaviour.THROTTLED,
        Behaviour.ERRORS,
        Behaviour.EMPTY_ERROR,
        Behaviour.REFUSED,
        Behaviour.RESET,
        Behaviour.RESET_AFTER_HEADERS,
        Behaviour.SILENT,
        Behaviour.ANSWER_LOST,
        Behaviour.DROPPED_BEFORE,
        Behaviour.DROPPED_AFTER,
    }
)

STRICT = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Shares(BaseModel):
    """Which share of all tokens (0 to 1) behaves how; the rest is accepted."""

    model_config = STRICT

    unregistered: float = Field(default=0.0, ge=0, le=1)
    stale_unregistered: float = Field(default=0.0, ge=0, le=1)
    expired_token: float = Field(default=0.0, ge=0, le=1)
    bad: float = Field(default=0.0, ge=0, le=1)
    wrong_topic: float = Field(default=0.0, ge=0, le=1)
    other_environment: float = Field(default=0.0, ge=0, le=1)
    throttled: float = Field(default=0.0, ge=0, le=1)
    errors: float = Field(default=0.0, ge=0, le=1)
    empty_error: float = Field(default=0.0, ge=0, le=1)
    refused: float = Field(default=0.0, ge=0, le=1)
    reset: float = Field(default=0.0, ge=0, le=1)
    reset_after_headers: float = Field(default=0.0, ge=0, le=1)
    silent: float = Field(default=0.0, ge=0, le=1)
    answer_lost: float = Field(default=0.0, ge=0, le=1)
    dropped_before: float = Field(default=0.0, ge=0, le=1)
    dropped_after: float = Field(default=0.0, ge=0, le=1)
    slow: float = Field(default=0.0, ge=0, le=1)
    no_apns_id: float = Field(default=0.0, ge=0, le=1)
    upper_case_id: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _leave_room(self) -> Shares:
        total = sum(self.model_dump().values())
        if total > 1 + 1e-9:
            raise ValueError(f"shares add up to {total:g}: they may not exceed 1")
        return self


@lru_cache(maxsize=64)
def _thresholds(shares: Shares) -> tuple[tuple[float, ...], tuple[Behaviour, ...]]:
    taken = [(behaviour, share) for behaviour in Behaviour if (share := getattr(shares, behaviour, 0.0)) > 0]
    return tuple(accumulate(share for _, share in taken)), (*(name for name, _ in taken), Behaviour.ACCEPTED)


@lru_cache(maxsize=64)
def _seeded(seed: int) -> Any:
    return blake2b(str(seed).encode(), digest_size=8)


def fraction_of(token: bytes, seed: int) -> float:
    """A stable number in [0, 1) for lower-case hex `token`, evenly spread over tokens."""
    digest = _seeded(seed).copy()
    digest.update(token)
    return int.from_bytes(digest.digest(), "big") / 2**64


def behaviour_of(token: str | bytes, shares: Shares, seed: int = 0) -> Behaviour:
    """What a simulator with these shares and this seed does with the token (hex, either case), rules aside."""
    limits, behaviours = _thresholds(shares)
    if not limits:
        return Behaviour.ACCEPTED
    raw = token.lower().encode() if isinstance(token, str) else token.lower()
    return behaviours[bisect_right(limits, fraction_of(raw, seed))]


class Rule(BaseModel):
    """What to do with given tokens, or with all that start with `prefix`, instead of asking the hash.

    `environment` and `topic` say where the token belongs: elsewhere it is answered with BadDeviceToken or
    DeviceTokenNotForTopic. `status` (with `reason`; empty for no body) answers exactly that instead of a behaviour.
    """

    model_config = STRICT

    tokens: tuple[str, ...] = ()
    prefix: str | None = Field(default=None, pattern=r"^[0-9a-fA-F]*$")
    behaviour: Behaviour = Behaviour.ACCEPTED
    timestamp: int | None = Field(
        default=None, ge=0
    )  # Unix milliseconds of a 410; None: this moment (stale: a year ago)
    environment: Environment | None = None
    topic: str | None = None
    status: int | None = Field(default=None, ge=200, le=599)
    reason: str = ""
    tries: int | None = Field(
        None, ge=0
    )  # how often a passing fault or `status` comes; 0: always; None: the scenario's
    reset_code: int | None = Field(default=None, ge=0, le=2**32 - 1)  # None: the scenario's
    latency_ms: float = Field(default=0.0, ge=0)  # on top of the scenario's

    @field_validator("tokens")
    @classmethod
    def _lower_hex(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        for token in tokens:
            if not token or any(letter not in "0123456789abcdefABCDEF" for letter in token):
                raise ValueError(f"{token[:8]!r}… is no hex token")
        return tuple(token.lower() for token in tokens)

    @model_validator(mode="after")
    def _names_something(self) -> Rule:
        if not self.tokens and self.prefix is None:
            raise ValueError("a rule names its tokens, or a prefix ('' for every token)")
        return self
