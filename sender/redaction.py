"""What may not be read by anybody is cut out of a text: the last defence of logs and error messages.

Nothing relies on it: whoever writes a log event or an error names ids, and 8 characters of a token at most. But
messages of other libraries pass through us too, and PostgreSQL's hold the values of whole rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from sender.registry.tokens import redact as redact_hex

#: In the order in which they are applied. A text without any of `_MARKS` is not looked at further.
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN ([A-Z ]*)PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
        "(a private key)",
    ),
    # A provider token, or any other JWT (RFC 7519): its first part is the JSON of its header, which begins with {".
    (re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?"), "eyJ…"),
    # The rest of a URL's user information; passwords that hold an @ included.
    (re.compile(r"(?<=://)([^\s/:@'\"]*):[^\s/'\"]+(?=@)"), r"\1:…"),
    # libpq's secondary lines hold values: of keys, of rows that failed, of the line that COPY read. Their line breaks
    # are escaped where the error was shown by its repr.
    (
        re.compile(r"((?:^|\\n)[ \t]*(?:DETAIL|CONTEXT|QUERY|STATEMENT|PARAMETERS):)(?:(?!\\n)[^\n])*", re.MULTILINE),
        r"\1 …",
    ),
    (re.compile(r"(\bpassword=)(?:'[^']*'|[^\s'\"&]+)", re.IGNORECASE), r"\1…"),
)
_MARKS = ("PRIVATE KEY", "eyJ", "://", "DETAIL:", "CONTEXT:", "QUERY:", "STATEMENT:", "PARAMETERS:", "assword=")


def redact(text: str) -> str:
    """The text without private keys, JWTs, passwords in URLs, values of rows, and whole device tokens."""
    if any(mark in text for mark in _MARKS):
        for pattern, instead in _RULES:
            text = pattern.sub(instead, text)
    return redact_hex(text)


def redact_value(value: Any) -> Any:
    """The same for everything in a log event: numbers stay, what is no text is shown as one."""
    match value:
        case str():
            return redact(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {redact(str(name)): redact_value(item) for name, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [redact_value(item) for item in value]
        case _:
            return redact(_shown(value))


def _shown(value: Any) -> str:
    show: Callable[[Any], str] = str if isinstance(value, BaseException) else repr
    try:
        return show(value)
    except Exception as error:  # a log line must not break what it tells of
        return f"({type(value).__name__} without a repr: {type(error).__name__})"
