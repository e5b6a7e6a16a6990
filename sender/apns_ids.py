"""The apns-id of a delivery."""

from __future__ import annotations

from uuid import UUID


def delivery_apns_id(campaign_id: int, device_id: int) -> str:
    """The apns-id of a delivery: a version 8 UUID (RFC 9562) of the campaign's and the device's ids, the same for
    every attempt, so that APNs's answers, Apple's console and our rows can be joined."""
    number = (campaign_id & 0xFFFF_FFFF_FFFF) << 80 | 0x8000 << 64 | 0x8000_0000_0000_0000 | device_id
    return str(UUID(int=number))
