"""A queue-driven campaign sender for the Apple Push Notification service."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sender._version import __version__

if TYPE_CHECKING:
    from sender.audience import Segment
    from sender.audience.canary import Canary
    from sender.client import Sender
    from sender.errors import (
        BrokerUnavailableError,
        ConfigurationError,
        ConflictError,
        CredentialError,
        DatabaseUnavailableError,
        InvalidInputError,
        InvalidPayloadError,
        InvalidSegmentError,
        InvalidTokenError,
        MissingExtraError,
        NotFoundError,
        SchemaVersionError,
        SenderError,
        TransitionError,
    )
    from sender.model import Authorization, Environment, PushType
    from sender.payload import Alert, Payload, Sound
    from sender.planning.plan import DEFAULT, InvalidCampaignError

__all__ = [
    "DEFAULT",
    "Alert",
    "Authorization",
    "BrokerUnavailableError",
    "Canary",
    "ConfigurationError",
    "ConflictError",
    "CredentialError",
    "DatabaseUnavailableError",
    "Environment",
    "InvalidCampaignError",
    "InvalidInputError",
    "InvalidPayloadError",
    "InvalidSegmentError",
    "InvalidTokenError",
    "MissingExtraError",
    "NotFoundError",
    "Payload",
    "PushType",
    "SchemaVersionError",
    "Segment",
    "Sender",
    "SenderError",
    "Sound",
    "TransitionError",
    "__version__",
]

#: The module of each name that is imported when it is asked for: the command line starts without all of them. The
#: errors are all that is named in no other.
_HOMES = dict.fromkeys(sorted({*__all__} - {"__version__"}), "sender.errors") | {
    "Alert": "sender.payload",
    "Authorization": "sender.model",
    "Canary": "sender.audience.canary",
    "DEFAULT": "sender.planning.plan",
    "Environment": "sender.model",
    "InvalidCampaignError": "sender.planning.plan",
    "Payload": "sender.payload",
    "PushType": "sender.model",
    "Segment": "sender.audience",
    "Sender": "sender.client",
    "Sound": "sender.payload",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # type checkers know the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(_HOMES[name]), name)
        return found
