"""A queue-driven campaign sender for the Apple Push Notification service."""

from __future__ import annotations

from sender._version import __version__
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
