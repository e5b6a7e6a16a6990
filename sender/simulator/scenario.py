"""A scenario: everything that can be wrong with an APNs, as data. Read from TOML or JSON, checked as a whole.

seed = 7
latency_ms = 60
shares = { unregistered = 0.02, bad = 0.01, throttled = 0.005 }

[goaway]                    # on each connection, after 500 to 1,500 requests
after_requests = [500, 1500]
above = 3                   # not processed
unanswered = 2              # delivered, never answered
reason = "Shutdown"

[[storms]]                  # 503 for ten seconds, half a minute from now
status = 503
after_seconds = 30
for_seconds = 10

[[outages]]                 # connections refused for two minutes
kind = "refuse"
after_seconds = 60
for_seconds = 120
drop = true

[[rules]]
tokens = ["00fc13adff785122b4ad28809a3420982341241421348097878e577c991de8f0"]
behaviour = "unregistered"
timestamp = 1700000000000
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from sender.errors import InvalidInputError
from sender.model import Environment
from sender.simulator.behaviour import STRICT, Rule, Shares


def _as_range(value: Any) -> Any:
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


#: A number of requests: fixed (100), or chosen by the seed for each connection ([50, 150]).
Requests = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], BeforeValidator(_as_range)]


class Settings(BaseModel):
    """HTTP/2 SETTINGS of a connection, as APNs stages them."""

    model_config = STRICT

    streams_before_auth: int = Field(default=1, ge=0)  # MAX_CONCURRENT_STREAMS until a provider token was accepted
    max_concurrent_streams: int = Field(default=1000, ge=0)  # … afterwards, and at once with a certificate
    initial_window_size: int = Field(default=65_535, ge=0, le=2**31 - 1)
    max_frame_size: int = Field(default=16_384, ge=16_384, le=2**24 - 1)
    header_table_size: int = Field(default=4_096, ge=0, le=2**20)
    window_updates: bool = True  # False: never gives flow-control window back, so that senders run dry


class SettingsChange(BaseModel):
    """New SETTINGS for every connection, once it has seen so many requests or is so old."""

    model_config = STRICT

    after_requests: int | None = Field(default=None, ge=1)
    after_seconds: float | None = Field(default=None, ge=0)
    max_concurrent_streams: int | None = Field(default=None, ge=0)
    initial_window_size: int | None = Field(default=None, ge=0, le=2**31 - 1)
    max_frame_size: int | None = Field(default=None, ge=16_384, le=2**24 - 1)
    header_table_size: int | None = Field(default=None, ge=0, le=2**20)

    @model_validator(mode="after")
    def _says_when(self) -> SettingsChange:
        if (self.after_requests is None) == (self.after_seconds is None):
            raise ValueError("say when: either after_requests or after_seconds")
        return self


class GoAway(BaseModel):
    """Say goodbye on every connection after so many requests.

    The newest `above` of them lie above the last stream id and are not processed; the `unanswered` before those lie
    at or below it, are delivered, and never answered. Both are held back until the GOAWAY goes out (at the latest
    `hold_ms` after the first of them). The connection is cut `close_after_ms` later.
    """

    model_config = STRICT

    after_requests: Requests
    above: int = Field(default=0, ge=0)
    unanswered: int = Field(default=0, ge=0)
    error_code: int = Field(default=0, ge=0, le=2**32 - 1)
    reason: str | None = None  # debug data {"reason": …}
    debug: str | None = None  # plain debug data
    hold_ms: float = Field(default=250, ge=0)
    close_after_ms: float | None = Field(default=1000, ge=0)  # None: left to the client
    connections: int | None = Field(default=None, ge=1)  # only the first so many; None: all

    @model_validator(mode="after")
    def _holds_together(self) -> GoAway:
        if self.reason is not None and self.debug is not None:
            raise ValueError("debug data is either reason (JSON) or debug (plain)")
        if self.above + self.unanswered > self.after_requests[0]:
            raise ValueError("above + unanswered exceed after_requests")
        return self

    @property
    def debug_data(self) -> bytes:
        """What goes out as the frame's opaque debug data."""
        if self.reason is not None:
            return json.dumps({"reason": self.reason}, separators=(",", ":")).encode()
        return (self.debug or "").encode()


class Drop(BaseModel):
    """Cut every connection, without a word, at its n-th request; `delivered` says whether that one counts."""

    model_config = STRICT

    after_requests: Requests
    delivered: bool = False
    connections: int | None = Field(default=None, ge=1)  # only the first so many; None: all


class Storm(BaseModel):
    """A time in which a share of all requests gets an error, whatever the token."""

    model_config = STRICT

    status: int = Field(default=503, ge=400, le=599)
    reason: str | None = None  # None: Apple's usual for the status; "": no body
    share: float = Field(default=1.0, gt=0, le=1)  # of tokens, by the seeded hash
    after_seconds: float = Field(default=0.0, ge=0)  # since the scenario was set
    after_requests: int = Field(default=0, ge=0)  # … and not before so many requests since then
    for_seconds: float | None = Field(default=None, gt=0)  # None: without end
    for_requests: int | None = Field(default=None, ge=1)


class OutageKind(StrEnum):
    """What happens to somebody who connects."""

    REFUSE = "refuse"  # nobody listens: connection refused
    RESET = "reset"  # accepted and cut
    SILENT = "silent"  # accepted, and no TLS handshake ever
    TLS_ALERT = "tls_alert"  # the handshake fails
    WRONG_CERTIFICATE = "wrong_certificate"  # a server certificate of a CA that nobody trusts
    CLOSE = "close"  # closed right after the handshake


class Outage(BaseModel):
    """A time in which connecting fails; connections that are open stay open unless `drop`."""

    model_config = STRICT

    kind: OutageKind = OutageKind.REFUSE
    after_seconds: float = Field(default=0.0, ge=0)  # since the scenario was set
    for_seconds: float | None = Field(default=None, gt=0)
    connections: int | None = Field(default=None, ge=1)  # or: so many connection attempts (not with refuse)
    drop: bool = False  # also cut what is open when it begins

    @model_validator(mode="after")
    def _ends(self) -> Outage:
        if self.for_seconds is None and self.connections is None:
            raise ValueError("an outage needs for_seconds or connections")
        if self.kind is OutageKind.REFUSE and self.connections is not None:
            raise ValueError("refused connections are not seen and cannot be counted: use for_seconds")
        return self


class ProviderTokens(BaseModel):
    """How strict the server is about provider tokens."""

    model_config = STRICT

    max_age: float = Field(default=3600, gt=0)  # seconds
    future: float = Field(default=60, ge=0)  # seconds by which iat may be ahead
    per_connection: int = Field(default=5, ge=0)  # distinct tokens before TooManyProviderTokenUpdates; 0: unlimited
    per_team: int = Field(default=50, ge=0)  # the same for a team within `window`; 0: unlimited
    window: float = Field(default=1200, gt=0)  # seconds
    hold_team: bool = False  # over the limit, refuse the team's known tokens too


class Scenario(BaseModel):
    """How the simulated APNs behaves; as created it is well-behaved."""

    model_config = STRICT

    seed: int = 0
    latency_ms: float = Field(default=0.0, ge=0)
    jitter_ms: float = Field(default=0.0, ge=0)  # up to so much more, by a hash of token and try
    slow_ms: float = Field(default=2_000.0, ge=0)  # of slow tokens
    tries: int = Field(default=1, ge=0)  # how many tries of a token a passing fault lasts; 0: for ever
    reset_code: int = Field(
        default=2, ge=0, le=2**32 - 1
    )  # RST_STREAM's, of reset and reset_after_headers; 2: INTERNAL_ERROR
    token_environment: Environment | None = None  # ordinary tokens are valid here only; None: in both
    shares: Shares = Shares()
    rules: tuple[Rule, ...] = ()
    settings: Settings = Settings()
    settings_changes: tuple[SettingsChange, ...] = ()
    goaway: GoAway | None = None
    drop: Drop | None = None
    storms: tuple[Storm, ...] = ()
    outages: tuple[Outage, ...] = ()
    provider_tokens: ProviderTokens = ProviderTokens()


def parse_scenario(value: Mapping[str, Any], *, name: str = "scenario") -> Scenario:
    """A scenario from its JSON or TOML form. Raises `InvalidInputError` with every fault in it."""
    try:
        return Scenario.model_validate(value)
    except ValidationError as error:
        raise InvalidInputError(name, faults_of(error)) from None


def parse_rules(value: Any) -> tuple[Rule, ...]:
    """Rules from their JSON form: a list, or {"rules": list}. Raises `InvalidInputError` with every fault."""
    listed = value.get("rules") if isinstance(value, Mapping) else value
    return parse_scenario({"rules": listed}, name="rules").rules


def load_scenario(path: Path) -> Scenario:
    """Read a scenario file, JSON by its ending and TOML otherwise. Raises `InvalidInputError`."""
    kind, parse = ("JSON", json.loads) if path.suffix.lower() == ".json" else ("TOML", tomllib.loads)
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"scenario {path}", [f"cannot be read: {error.strerror}"]) from None
    except ValueError as error:
        raise InvalidInputError(f"scenario {path}", [f"is not {kind}: {error}"]) from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"scenario {path}", ["must be an object"])
    return parse_scenario(value, name=f"scenario {path}")


def faults_of(error: ValidationError) -> list[str]:
    """Every fault in words, with its place: `shares.bad: Input should be less than or equal to 1`."""
    found = error.errors(include_input=False, include_context=False, include_url=False)
    return [
        ": ".join(
            part
            for part in (".".join(str(step) for step in fault["loc"]), fault["msg"].removeprefix("Value error, "))
            if part
        )
        for fault in found
    ]
