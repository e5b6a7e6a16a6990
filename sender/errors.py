"""The error tree: one base, and a message that says what to do next.

An APNs rejection is never an exception (it is a value, see `sender.model`); exceptions are for bad input, for missing
configuration, and for servers that cannot be reached.
"""

from __future__ import annotations

from collections.abc import Sequence


class SenderError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_code = 1


class ConfigurationError(SenderError):
    """Raised when a setting is missing or wrong."""

    exit_code = 2


class MissingExtraError(ConfigurationError):
    """Raised when a command needs packages that the plain install leaves out."""

    def __init__(self, what: str, extra: str) -> None:
        self.what = what
        self.extra = extra
        super().__init__(f"{what} needs the {extra!r} extra: pip install 'apns-campaign-sender[{extra}]'")


class InvalidInputError(SenderError):
    """Raised when input is refused; `faults` lists everything that is wrong with it, not only the first thing."""

    exit_code = 2

    def __init__(self, what: str, faults: Sequence[str]) -> None:
        self.what = what
        self.faults = tuple(faults)
        super().__init__(f"{what}: " + "; ".join(self.faults))


class InvalidPayloadError(InvalidInputError):
    """Raised when APNs would refuse the payload or one of its headers."""


class InvalidSegmentError(InvalidInputError):
    """Raised when an audience segment is malformed."""


class InvalidTokenError(InvalidInputError):
    """Raised when a device token is not an APNs token; the message never holds the whole token."""


class CredentialError(InvalidInputError):
    """Raised when a key or certificate cannot be used; the message never holds any of its secret."""


class NotFoundError(SenderError):
    """Raised when an app, device, user or campaign does not exist."""

    def __init__(self, what: str, name: str, hint: str = "") -> None:
        self.what = what
        self.name = name
        super().__init__(f"no {what} {name!r}" + (f": {hint}" if hint else ""))


class ConflictError(SenderError):
    """Raised when a name is taken by something else, or a state does not allow what was asked."""


class DatabaseUnavailableError(SenderError):
    """Raised when PostgreSQL cannot be reached or is not migrated."""


class SchemaVersionError(DatabaseUnavailableError):
    """Raised when the database's schema is older or newer than this version's; says which, and what to do."""


class BrokerUnavailableError(SenderError):
    """Raised when Redis cannot be reached."""


class StackError(SenderError):
    """Raised when an embedded server or a process of `sender up` does not start; holds the end of its log."""


class TransitionError(ConflictError):
    """Raised when a state machine has no such move; the message names the moves that there are."""
