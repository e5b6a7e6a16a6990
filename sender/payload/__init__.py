"""What a push says, and what APNs or the device would refuse of it."""

from sender.payload.payload import (
    AUTO,
    MOST_BYTES,
    MOST_BYTES_VOIP,
    RESERVED_KEY,
    Alert,
    Encoded,
    Payload,
    Sound,
    derive_collapse_id,
    encode,
    to_bytes,
)

__all__ = [
    "AUTO",
    "MOST_BYTES",
    "MOST_BYTES_VOIP",
    "RESERVED_KEY",
    "Alert",
    "Encoded",
    "Payload",
    "Sound",
    "derive_collapse_id",
    "encode",
    "to_bytes",
]
