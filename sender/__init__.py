"""A queue-driven campaign sender for the Apple Push Notification service."""

from __future__ import annotations

from sender._version import __version__
from sender.client import Sender

__all__ = ["Sender", "__version__"]
