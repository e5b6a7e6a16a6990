"""What we do about every answer of APNs, as one table: "what happens on 410?" is answered by reading one row.

Source of the reasons: Apple, "Handling notification responses from APNs"
(https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns), and what
providers report. Reasons are an open set: an unknown one falls back on its status class. docs/errors.md is generated
from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from sender.model import Accepted, Answer, NotProcessed, Rejected, Unknown


class DeliveryStep(StrEnum):
    """What happens to the delivery."""

    SENT = "sent"  # final
    REJECT = "reject"  # final
    RETRY = "retry"  # again after a back-off, an attempt charged, unless it expires first
    DEFER = "defer"  # again when the device's blocklisting ends, unless it expires first
    RESEND = "resend"  # provably not processed: again at once on another connection, no attempt charged
    RELEASE = "release"  # back to the queue untouched, no attempt charged
    UNKNOWN = "unknown"  # the campaign's delivery guarantee decides
    FAIL = "fail"  # final: the campaign itself is wrong


class TokenStep(StrEnum):
    """What happens to the device's token."""

    NONE = "none"
    INVALIDATE = "invalidate"  # unless it was registered after the answer's timestamp
    QUARANTINE = "quarantine"  # left alone and no longer sent to, until somebody knows more
    BLOCKLIST = "blocklist"  # not before a back-off has passed
    CLEAR = "clear"  # an accepted push ends a blocklisting


class Halt(StrEnum):
    """What else must stop."""

    NONE = "none"
    HOLD_CREDENTIAL = "hold_credential"  # all apps of the credential wait
    PAUSE_APP = "pause_app"  # configuration: a person must act
    STOP_CAMPAIGN = "stop_campaign"  # the message is wrong, or we have a bug


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One row: what an answer means, what we do about it, and what a person can do."""

    reason: str
    statuses: tuple[int, ...]
    delivery: DeliveryStep
    token: TokenStep = TokenStep.NONE
    halt: Halt = Halt.NONE
    fresh_connection: bool = False  # it may be the connection's fault: what comes next goes out on a new one
    meaning: str
    advice: str

    @property
    def doubts_refusal(self) -> bool:
        """Whether one retry on a new connection comes before the rest of the row."""
        return self.fresh_connection and self.halt is Halt.PAUSE_APP


_OURS = "Report it with the apns-id: it is a bug of this sender, not of your data."
_CHECK_SETUP = (
    "Nothing to do for single devices: they register again at the next launch. When it is most of the audience, check "
    "the app's credential, bundle id and the environment that the tokens were imported with."
)

RULES: tuple[Rule, ...] = (
    Rule(
        reason="Unregistered",
        statuses=(410,),
        delivery=DeliveryStep.REJECT,
        token=TokenStep.INVALIDATE,
        meaning="The app was removed from the device, or its token was replaced.",
        advice="Nothing to do: the token is invalid until the device registers again.",
    ),
    Rule(
        reason="ExpiredToken",
        statuses=(410,),
        delivery=DeliveryStep.REJECT,
        token=TokenStep.INVALIDATE,
        meaning="The device token has expired.",
        advice="Nothing to do: the token is invalid until the device registers again.",
    ),
    Rule(
        reason="BadDeviceToken",
        statuses=(400,),
        delivery=DeliveryStep.REJECT,
        token=TokenStep.QUARANTINE,
        meaning="The token is malformed, or it is a valid token of the other environment (builds run from Xcode have "
        "sandbox tokens; TestFlight and the App Store have production tokens).",
        advice=_CHECK_SETUP,
    ),
    Rule(
        reason="DeviceTokenNotForTopic",
        statuses=(400,),
        delivery=DeliveryStep.REJECT,
        token=TokenStep.QUARANTINE,
        meaning="The token was issued to another app than the one that the credential and bundle id serve.",
        advice="Check that the bundle id of the app and the topic of its credential are those of the build that the "
        "token was registered from. No token is thrown away for this.",
    ),
    Rule(
        reason="TooManyRequests",
        statuses=(429,),
        delivery=DeliveryStep.DEFER,
        token=TokenStep.BLOCKLIST,
        meaning="Too many pushes in a row went to this device; APNs blocklists it for a while.",
        advice="Nothing to do: it is delivered when the back-off ends, if that is before its expiration. Send less "
        "often to the same device when it happens a lot.",
    ),
    Rule(
        reason="TooManyProviderTokenUpdates",
        statuses=(429,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.HOLD_CREDENTIAL,
        fresh_connection=True,
        meaning="The provider token of this team was renewed too often.",
        advice="Look for another sender with the same key that mints a token for every connection or push; this one "
        "mints one in 40 minutes. Sending goes on by itself after 20 minutes.",
    ),
    Rule(
        reason="ExpiredProviderToken",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        fresh_connection=True,
        meaning="APNs finds the provider token older than an hour: the clock of this machine is wrong.",
        advice="Correct the clock (NTP) of the worker hosts, then resume the app.",
    ),
    Rule(
        reason="InvalidProviderToken",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        fresh_connection=True,
        meaning="APNs cannot verify the provider token: wrong key id, team id or key file, or the key was revoked.",
        advice="Check team id, key id and key file (`sender apps show`), replace them with `sender apps "
        "set-credential`, then resume the app.",
    ),
    Rule(
        reason="MissingProviderToken",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="APNs saw neither a provider token nor a certificate for this topic.",
        advice="Give the app a credential that serves this environment (`sender apps set-credential`).",
    ),
    Rule(
        reason="UnrelatedKeyIdInToken",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        fresh_connection=True,
        meaning="The key id of the provider token belongs to another key than earlier ones on this connection.",
        advice="Check which key serves this app and environment (`sender apps show`).",
    ),
    Rule(
        reason="BadEnvironmentKeyIdInToken",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="The key serves the other environment only.",
        advice="Create a key for this environment in the developer account and set it with `sender apps "
        "set-credential --environment`.",
    ),
    Rule(
        reason="BadEnvironmentKeyInToken",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="The key serves the other environment only.",
        advice="Create a key for this environment in the developer account and set it with `sender apps "
        "set-credential --environment`.",
    ),
    Rule(
        reason="BadCertificate",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="APNs does not accept the certificate: it is expired, revoked or no push certificate.",
        advice="Renew it in the developer account and set it with `sender apps set-credential`.",
    ),
    Rule(
        reason="BadCertificateEnvironment",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="The certificate serves the other environment only.",
        advice="Set a certificate for this environment with `sender apps set-credential --environment`.",
    ),
    Rule(
        reason="Forbidden",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="APNs does not allow this action with this credential.",
        advice="Check the credential's rights in the developer account, then resume the app.",
    ),
    Rule(
        reason="BadTopic",
        statuses=(400,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="The topic is not valid: the app's bundle id, or the push type's suffix, is wrong.",
        advice="Check the bundle id (`sender apps show`) against the one in Xcode.",
    ),
    Rule(
        reason="MissingTopic",
        statuses=(400,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="No topic was sent and the certificate serves more than one.",
        advice=_OURS,
    ),
    Rule(
        reason="TopicDisallowed",
        statuses=(400,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="The credential does not serve this topic.",
        advice="Check that the bundle id belongs to the credential's team, and that the push type is allowed for it.",
    ),
    Rule(
        reason="PayloadTooLarge",
        statuses=(413, 400),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The payload is larger than 4096 bytes (5120 for VoIP).",
        advice="Shorten it and send a new campaign.",
    ),
    Rule(
        reason="PayloadEmpty",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The payload is empty.",
        advice=_OURS,
    ),
    Rule(
        reason="BadCollapseId",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The collapse id is longer than 64 bytes.",
        advice="Shorten it and send a new campaign.",
    ),
    Rule(
        reason="BadExpirationDate",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The expiration is not valid.",
        advice=_OURS,
    ),
    Rule(
        reason="BadPriority",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The priority is not valid for this push type.",
        advice="Use 10, 5 or 1; background pushes must use 5.",
    ),
    Rule(
        reason="InvalidPushType",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The push type is not valid, or not for this credential.",
        advice="Check the push type against the payload.",
    ),
    Rule(
        reason="BadMessageId",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The apns-id is not a canonical UUID.",
        advice=_OURS,
    ),
    Rule(
        reason="DuplicateHeaders",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="A header was sent twice.",
        advice=_OURS,
    ),
    Rule(
        reason="MissingDeviceToken",
        statuses=(400,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The path has no device token.",
        advice=_OURS,
    ),
    Rule(
        reason="BadPath",
        statuses=(404,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The path is not one that APNs knows.",
        advice=_OURS,
    ),
    Rule(
        reason="MethodNotAllowed",
        statuses=(405,),
        delivery=DeliveryStep.FAIL,
        halt=Halt.STOP_CAMPAIGN,
        meaning="The method is not POST.",
        advice=_OURS,
    ),
    Rule(
        reason="IdleTimeout",
        statuses=(400,),
        delivery=DeliveryStep.RETRY,
        fresh_connection=True,
        meaning="The connection had been idle for too long.",
        advice="Nothing to do: it is sent again.",
    ),
    Rule(
        reason="InternalServerError",
        statuses=(500,),
        delivery=DeliveryStep.RETRY,
        meaning="APNs had an internal error.",
        advice="Nothing to do: it is sent again after a back-off.",
    ),
    Rule(
        reason="ServiceUnavailable",
        statuses=(503,),
        delivery=DeliveryStep.RETRY,
        meaning="APNs is unavailable at the moment.",
        advice="Nothing to do: it is sent again after a back-off.",
    ),
    Rule(
        reason="Shutdown",
        statuses=(503,),
        delivery=DeliveryStep.RETRY,
        fresh_connection=True,
        meaning="The APNs server is shutting down.",
        advice="Nothing to do: it is sent again on another connection.",
    ),
)

#: What an unknown reason, or an answer without a body, falls back on: its status, then the hundred it belongs to.
FALLBACKS: Mapping[int, Rule] = {
    400: Rule(
        reason="400",
        statuses=(400,),
        delivery=DeliveryStep.REJECT,
        meaning="APNs refused the request and named no reason that we know.",
        advice="Look the reason up in Apple's documentation; no token was touched.",
    ),
    403: Rule(
        reason="403",
        statuses=(403,),
        delivery=DeliveryStep.RELEASE,
        halt=Halt.PAUSE_APP,
        meaning="APNs does not accept the credential and named no reason that we know.",
        advice="Check the credential with `sender doctor --apns`, then resume the app.",
    ),
    410: RULES[0],
    413: next(rule for rule in RULES if rule.reason == "PayloadTooLarge"),
    429: Rule(
        reason="429",
        statuses=(429,),
        delivery=DeliveryStep.RETRY,
        meaning="APNs asks for fewer pushes and named no reason that we know.",
        advice="Nothing to do: it is sent again after a back-off.",
    ),
    500: Rule(
        reason="5xx",
        statuses=(500, 502, 503, 504),
        delivery=DeliveryStep.RETRY,
        meaning="APNs had an error of its own.",
        advice="Nothing to do: it is sent again after a back-off.",
    ),
}

#: Names for answers that are none.
NO_ANSWER = Rule(
    reason="NoAnswer",
    statuses=(),
    delivery=DeliveryStep.UNKNOWN,
    meaning="The connection was lost, or the deadline passed, before APNs answered: it may have arrived.",
    advice="Nothing to do: at-least-once campaigns send it again (the collapse id replaces the first); at-most-once "
    "campaigns count it as unknown.",
)
NOT_PROCESSED = Rule(
    reason="NotProcessed",
    statuses=(),
    delivery=DeliveryStep.RESEND,
    meaning="APNs refused the stream before it looked at the request.",
    advice="Nothing to do: it is sent again on another connection.",
)
SENT = Rule(
    reason="",
    statuses=(200,),
    delivery=DeliveryStep.SENT,
    token=TokenStep.CLEAR,
    meaning="APNs accepted the push.",
    advice="Nothing to do.",
)

#: The reason of what this sender itself fails on.
INTERNAL_ERROR = "InternalError"

#: The reason of what an at-most-once campaign may have sent and does not send again.
MAY_HAVE_BEEN_SENT = "MayHaveBeenSent"

#: Reasons of our own, for deliveries that ended without an answer of APNs: reason -> (meaning, advice).
OWN_REASONS: Mapping[str, tuple[str, str]] = {
    "Expired": ("Its expiration came before it could be delivered.", "Send with a longer `expires_in`."),
    "Cancelled": ("The campaign was cancelled before this device's turn.", "Nothing to do."),
    "CampaignFailed": ("The campaign failed before this device's turn.", "See `sender campaigns show`."),
    "CredentialHeld": (
        "The credential of this device's environment rests, because APNs served it badly or asked for it.",
        "Nothing to do: it is sent when the rest is over. See `sender apps show`.",
    ),
    "NotReachable": ("The device became unreachable between the cut and its turn.", "Nothing to do."),
    "Invalid": ("The token became invalid between the cut and its turn.", "Nothing to do."),
    "Quarantined": ("The token was quarantined between the cut and its turn.", "See its changelog."),
    "OptedOut": ("The user opted out between the cut and its turn.", "Nothing to do."),
    "Moved": ("The device was deleted or moved to another user between the cut and its turn.", "Nothing to do."),
    "AttemptsExhausted": ("Every attempt failed.", "See the reasons of the campaign; send again with another key."),
    "NoCredential": (
        "The app has no credential for this device's environment.",
        "Add one with `sender apps set-credential --environment`.",
    ),
    MAY_HAVE_BEEN_SENT: (
        "A worker was about to send it and died, or stood still for longer than its lease, before anything was "
        "recorded: it may have arrived. An at-most-once campaign never sends such a delivery again.",
        "Nothing to do. Send those another campaign if they must have it for certain.",
    ),
    INTERNAL_ERROR: (
        "This sender failed on this delivery again and again, or could not record it; `sender campaigns show` names "
        "the error.",
        _OURS,
    ),
}

_BY_REASON: Mapping[str, Rule] = {rule.reason: rule for rule in RULES}

#: Reasons with which a connection takes its leave: nothing more goes out on it.
CONNECTION_ENDS = frozenset(rule.reason for rule in RULES if rule.fresh_connection and not rule.doubts_refusal)


def rule_for(answer: Answer) -> Rule:
    """The row of the table that an answer falls under. Never fails: unknown reasons fall back on their status."""
    match answer:
        case Accepted():
            return SENT
        case NotProcessed():
            return NOT_PROCESSED
        case Unknown():
            return NO_ANSWER
        case Rejected(status=status, reason=reason):
            known = _BY_REASON.get(reason)
            if known is not None and status in known.statuses:
                return known
            return fallback_for(status)


def fallback_for(status: int) -> Rule:
    """The row for a status whose reason is missing or not known; unexpected statuses are treated as our bug (4xx)
    or as APNs's trouble (anything else)."""
    exact = FALLBACKS.get(status)
    if exact is not None:
        return exact
    return FALLBACKS[400] if 400 <= status < 500 else FALLBACKS[500]


def is_known(answer: Answer) -> bool:
    """Whether the answer's reason is in the table (an unknown one is worth a log line, once)."""
    return not isinstance(answer, Rejected) or answer.reason in _BY_REASON


def explain(reason: str) -> tuple[str, str]:
    """(meaning, advice) for a reason as the ledger stores it: Apple's, a fallback's or our own."""
    if reason in OWN_REASONS:
        return OWN_REASONS[reason]
    for rule in (*RULES, *FALLBACKS.values(), NO_ANSWER, NOT_PROCESSED):
        if rule.reason == reason:
            return rule.meaning, rule.advice
    return "APNs named a reason that this version does not know.", "Look it up in Apple's documentation."
