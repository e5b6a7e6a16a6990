"""Values that travel between the rooms: frozen, slotted, keyword-only. No behaviour beyond describing themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID


class Environment(StrEnum):
    """The APNs environment in which a token was issued: builds run from Xcode get sandbox tokens."""

    PRODUCTION = "production"
    SANDBOX = "sandbox"


class Authorization(StrEnum):
    """What the user allowed, as the app last reported it (UNAuthorizationStatus)."""

    AUTHORIZED = "authorized"
    PROVISIONAL = "provisional"  # delivered quietly
    DENIED = "denied"  # alerts are pointless; background pushes still arrive
    UNKNOWN = "unknown"  # never reported


class PushType(StrEnum):
    """Values of `apns-push-type` (Apple, "Sending notification requests to APNs")."""

    ALERT = "alert"
    BACKGROUND = "background"
    LOCATION = "location"
    VOIP = "voip"
    COMPLICATION = "complication"
    FILEPROVIDER = "fileprovider"
    MDM = "mdm"
    LIVEACTIVITY = "liveactivity"
    PUSHTOTALK = "pushtotalk"
    WIDGETS = "widgets"
    CONTROLS = "controls"


TOPIC_SUFFIX: dict[PushType, str] = {
    PushType.ALERT: "",
    PushType.BACKGROUND: "",
    PushType.LOCATION: ".location-query",
    PushType.VOIP: ".voip",
    PushType.COMPLICATION: ".complication",
    PushType.FILEPROVIDER: ".pushkit.fileprovider",
    PushType.MDM: "",
    PushType.LIVEACTIVITY: ".push-type.liveactivity",
    PushType.PUSHTOTALK: ".voip-ptt",
    PushType.WIDGETS: ".push-type.widgets",
    PushType.CONTROLS: ".push-type.controls",
}


class CredentialKind(StrEnum):
    """How a provider proves who it is."""

    KEY = "key"  # a .p8 signing key: provider tokens (JWT)
    CERTIFICATE = "certificate"  # a TLS client certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialRef:
    """Where a credential is kept. Refers to files and environment variables; never holds a secret itself."""

    kind: CredentialKind
    environment: Environment
    file: str  # absolute path of the .p8, .pem or .p12
    team_id: str | None = None
    key_id: str | None = None
    passphrase_env: str | None = None  # name of the environment variable that holds a .p12's or .pem's passphrase

    @property
    def identity(self) -> str:
        """What pools, breakers and holds belong to: (team, key or certificate, environment), not one app."""
        who = f"{self.team_id}/{self.key_id}" if self.kind is CredentialKind.KEY else self.file
        return f"{self.kind}:{who}:{self.environment}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHeaders:
    """What every push of a campaign has in common: the request headers except path, apns-id and authorization."""

    topic: str
    push_type: PushType
    priority: int  # 10, 5 or 1
    expiration: int | None  # absolute Unix seconds; 0 = one attempt, never stored; None = Apple's own policy
    collapse_id: str | None = None  # at most 64 bytes


class Push(NamedTuple):
    """One request to APNs. `payload` is the exact body; `token` is lower-case hex and never shown by repr.

    A tuple, as is everything that is made once a push: making a frozen dataclass costs three times as much.
    """

    token: str
    apns_id: str  # canonical lower-case UUID, derived from the delivery
    payload: bytes
    headers: PushHeaders

    def __repr__(self) -> str:
        return f"Push(apns_id={self.apns_id!r}, headers={self.headers!r})"


# --- Answers: what came back for one push. Exactly one of these for every push, always. -----------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """APNs answered 200: it took the notification over."""

    apns_unique_id: str | None = None  # sandbox only


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """APNs answered with an error status. `reason` is an open set; empty when the body was missing or not JSON."""

    status: int
    reason: str = ""
    timestamp: datetime | None = None  # 410 only: when APNs last knew the token to be valid (aware, UTC)
    apns_unique_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotProcessed:
    """Provably not processed (REFUSED_STREAM, above GOAWAY's last stream id, never written): safe to send again."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown:
    """No answer: APNs may or may not have taken it. Never guessed to be anything else."""

    cause: str


Answer: TypeAlias = Accepted | Rejected | NotProcessed | Unknown

ACCEPTED = Accepted()  # shared: production answers carry nothing else


# --- The push changelog ---------------------------------------------------------------------------------------------


class ChangeKind(StrEnum):
    """What happened to a token's state or owner. A registration that changes nothing is no change."""

    REGISTERED = "registered"  # a token not known before
    IMPORTED = "imported"  # the same, out of a file
    REVIVED = "revived"  # registered again after it was invalid or quarantined
    MOVED = "moved"  # another user's now: one row in each user's changelog
    ROTATED = "rotated"  # the device has a new token
    ENVIRONMENT_CHANGED = "environment_changed"
    UNREGISTERED = "unregistered"  # the app said that the token is gone
    OPTED_OUT = "opted_out"
    OPTED_IN = "opted_in"
    INVALIDATED = "invalidated"  # APNs said that the token is gone
    KEPT = "kept"  # APNs said so of a time before the registration: the device stays as it is
    QUARANTINED = "quarantined"  # the token or our configuration is wrong
    BLOCKLISTED = "blocklisted"  # too many pushes to the device: it rests
    UNBLOCKED = "unblocked"  # a push was accepted again
    REGISTRATION_FAILED = "registration_failed"  # the app could not get a token
    RESTORED = "restored"  # put back by an operator
    RELEASED = "released"  # out of quarantine: a push was accepted, or an operator said so
    FORGOTTEN = "forgotten"  # a person's data was erased


class Actor(StrEnum):
    """Who brought a change about."""

    APNS = "apns"
    APPLICATION = "application"
    IMPORT = "import"
    OPERATOR = "operator"
    SENDER = "sender"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One row of the push changelog. `token` is whole, so that an application can mirror the change; repr hides it.

    `old` and `new` hold what changed: state, user (the application's own id), environment, until, times.
    """

    cursor: str | None  # reading `after` it goes on with the next row; None: a row before it may yet come
    at: datetime
    kind: ChangeKind
    app: str | None
    token: str | None = field(repr=False)  # the device's token as it is now
    environment: str | None
    user: str | None  # whose changelog the row belongs to; None also when that person was forgotten
    old: dict[str, Any] | None
    new: dict[str, Any] | None
    reason: str | None
    campaign: str | None
    apns_id: UUID | None
    actor: Actor
