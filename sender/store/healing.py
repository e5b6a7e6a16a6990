"""Devices whose token turned out to belong to the other environment: moved there, with their changelog rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sender.store.database import Transaction


class Move(NamedTuple):
    """A push that was accepted in the other environment than the device was stored in. A tuple, as one may be made for
    every push."""

    device_id: int
    token: str
    stored: str  # the environment, as it was loaded
    accepted: str  # the environment that took it
    apns_id: str

    def __repr__(self) -> str:
        return f"Move(device_id={self.device_id}, accepted={self.accepted!r})"


_MOVE = """
WITH hit AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::bigint[], %(tokens)s::text[], %(stored)s::text[], %(accepted)s::text[],
                         %(apns_ids)s::uuid[]) AS h (device_id, token, stored, accepted, apns_id)
), held AS MATERIALIZED (
    SELECT d.id, h.stored, h.accepted, h.apns_id
    FROM {s}.devices d JOIN hit h ON d.id = h.device_id AND d.token = h.token AND d.environment = h.stored
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET environment = h.accepted FROM held h WHERE d.id = h.id
    RETURNING d.id, d.app_id, d.user_id, h.stored, h.accepted, h.apns_id
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id, apns_id)
    SELECT 'environment_changed', 'apns', app_id, id, user_id, jsonb_build_object('environment', stored),
           jsonb_build_object('environment', accepted), 'BadDeviceToken', %(campaign)s, apns_id
    FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""


def move(transaction: Transaction, moves: Sequence[Move], campaign_id: int) -> int:
    """Move devices to the environment that accepted them, unless token or environment changed meanwhile. Returns how
    many changed."""
    if not moves:
        return 0
    ids, tokens, stored, accepted, apns_ids = zip(*moves, strict=True)
    values = {
        "ids": list(ids),
        "tokens": list(tokens),
        "stored": list(stored),
        "accepted": list(accepted),
        "apns_ids": list(apns_ids),
        "campaign": campaign_id,
    }
    row = transaction.execute(_MOVE, values).fetchone()
    return int(row[0]) if row else 0
