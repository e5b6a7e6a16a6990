"""A queue-driven campaign sender for the Apple Push Notification service."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sender._version import __version__

if TYPE_CHECKING:
    from sender.audience import Segment
    from sender.campaign_plan import DEFAULT, InvalidCampaignError
    from sender.canary import Canary
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

#: The module of each name that is imported when it is asked for: the command line starts without all of them.
_HOMES = {
    "DEFAULT": "sender.campaign_plan",
    "Alert": "sender.payload",
    "Authorization": "sender.model",
    "BrokerUnavailableError": "sender.errors",
    "Canary": "sender.canary",
    "ConfigurationError": "sender.errors",
    "ConflictError": "sender.errors",
    "CredentialError": "sender.errors",
    "DatabaseUnavailableError": "sender.errors",
    "Environment": "sender.model",
    "InvalidCampaignError": "sender.campaign_plan",
    "InvalidInputError": "sender.errors",
    "InvalidPayloadError": "sender.errors",
    "InvalidSegmentError": "sender.errors",
    "InvalidTokenError": "sender.errors",
    "MissingExtraError": "sender.errors",
    "NotFoundError": "sender.errors",
    "Payload": "sender.payload",
    "PushType": "sender.model",
    "SchemaVersionError": "sender.errors",
    "Segment": "sender.audience",
    "Sender": "sender.client",
    "SenderError": "sender.errors",
    "Sound": "sender.payload",
    "TransitionError": "sender.errors",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # type checkers know the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found = getattr(import_module(_HOMES[name]), name)
        return found
