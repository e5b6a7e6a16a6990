"""Device tokens: recognise them, bring them into one form (lower-case hex), and never show one whole."""

from __future__ import annotations

import re
from collections.abc import Callable

from sender.errors import InvalidTokenError

#: Characters. Apple: "never assume a token's length"; but an index entry has to end somewhere.
LONGEST = 1024

_LONG_HEX = re.compile(r"[0-9a-fA-F]{16,}")
_DECORATION = str.maketrans("", "", "<> \t\r\n")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HEX = re.compile(r"[0-9a-fA-F]+")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{42,}={0,2}")


def normalise(token: str) -> str:
    """The token in lower-case hex. Accepts upper case, and the `<abcd ef01>` form that NSData's description had.

    Raises `InvalidTokenError`, which says what the text looks like instead and shows no more than its beginning.
    """
    if not isinstance(token, str):
        raise InvalidTokenError("device token", [f"must be text in hexadecimal, not {type(token).__name__}"])
    if _is_hex(token):
        return token.lower()
    plain = token.translate(_DECORATION)
    if not _is_hex(plain):
        raise InvalidTokenError(f"device token {prefix(token.strip())!r}", [fault_of(token)])
    return plain.lower()


def normalise_prefix(beginning: str) -> str:
    """The beginning of a token, or a whole one, in lower-case hex: at least 4 digits. Raises `InvalidTokenError`."""
    digits = beginning.translate(_DECORATION).rstrip("…").lower() if isinstance(beginning, str) else ""
    if not 4 <= len(digits) <= LONGEST or _HEX.fullmatch(digits) is None:
        raise InvalidTokenError(f"device token {prefix(digits)!r}", ["give at least its first 4 hex digits"])
    return digits


def fault_of(token: str) -> str:
    """Why a text that is no APNs token is none, in words that lead to the mistake."""
    text = token.strip()
    plain = text.translate(_DECORATION)
    return next(
        (words for looks_so, words in _LOOKS if looks_so(text)),
        f"an APNs device token is hexadecimal and at most {LONGEST} digits long, this text has {len(plain)} characters",
    )


def is_fcm(token: str) -> bool:
    """Whether the text is a registration token of Firebase Cloud Messaging rather than of APNs."""
    if "APA91b" in token:
        return True
    head, colon, tail = token.partition(":")
    return bool(colon) and len(head) >= 8 and len(tail) >= 60 and "/" not in token


def prefix(token: str) -> str:
    """The first 8 characters: all of a token that logs, errors and tables may show."""
    return f"{token[:8]}…" if len(token) > 8 else token


def redact(text: str) -> str:
    """The text with everything that could be a token shortened to its beginning."""
    return _LONG_HEX.sub(lambda found: prefix(found.group()), text)


def _is_hex(token: str) -> bool:
    """Whether the text is whole bytes in hexadecimal and nothing else. (A regular expression takes five times as
    long, and an import asks a million times.)"""
    try:
        return 0 < len(bytes.fromhex(token)) * 2 == len(token) <= LONGEST
    except ValueError:
        return False


def _is_odd_hex(text: str) -> bool:
    plain = text.translate(_DECORATION)
    return len(plain) % 2 == 1 and _HEX.fullmatch(plain) is not None


#: What people take for a device token, and what to do instead; the first that fits is told.
_LOOKS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (lambda text: not text.translate(_DECORATION), "the token is empty"),
    (
        is_fcm,
        "this is an FCM registration token (Firebase), not an APNs device token: read the APNs token in the app's "
        "didRegisterForRemoteNotificationsWithDeviceToken",
    ),
    (
        lambda text: text.startswith(("ExponentPushToken[", "ExpoPushToken[")),
        "this is an Expo push token, not an APNs device token: use getDevicePushTokenAsync",
    ),
    (
        lambda text: text.startswith(("https://", "http://")),
        "this is a URL (a Web Push endpoint?), not an APNs device token",
    ),
    (
        lambda text: _UUID.fullmatch(text) is not None,
        "this is a UUID (an identifier for vendors or advertisers?), not an APNs device token",
    ),
    (_is_odd_hex, "it has an odd number of hex digits: it was cut off, or a digit was lost"),
    (
        lambda text: _BASE64.fullmatch(text) is not None and _HEX.fullmatch(text) is None,
        "an APNs device token is hexadecimal, this looks like base64: encode the token's bytes as hex",
    ),
)
