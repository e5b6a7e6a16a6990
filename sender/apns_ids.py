"""The apns-id of a delivery."""

from __future__ import annotations

from collections.abc import Callable


def delivery_apns_id(campaign_id: int, device_id: int) -> str:
    """The apns-id of a delivery: a version 8 UUID (RFC 9562) of the campaign's and the device's ids, the same for
    every attempt, so that APNs's answers, Apple's console and our rows can be joined."""
    return delivery_apns_ids(campaign_id)(device_id)


def delivery_apns_ids(campaign_id: int) -> Callable[[int], str]:
    """`delivery_apns_id` for many devices of one campaign: what they share is written once."""
    start = f"{campaign_id >> 16 & 0xFFFF_FFFF:08x}-{campaign_id & 0xFFFF:04x}-8000"

    def of(device_id: int) -> str:
        return f"{start}-{0x8000 | device_id >> 48 & 0x3FFF:04x}-{device_id & 0xFFFF_FFFF_FFFF:012x}"

    return of
