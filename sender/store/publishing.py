"""Which batches of a campaign are open, and which of them are given to the workers now."""

from __future__ import annotations

from dataclasses import dataclass

from sender.store.database import Transaction
from sender.store.limits import INSTALLATION


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """The batches of a campaign that are not done."""

    batches: int
    queued: int  # published, and not claimed yet
    claimed: int
    resting: int  # due far from now: whom they are for must wait
    claimed_devices: int
    queued_devices: int
    wait: float  # seconds before its limits let another push go
    shared_wait: float  # the same of those that it shares with others


#: Devices of a batch that have no outcome yet: one that was given back may be done for a good part.
_LEFT = "(size - sent - rejected - skipped - expired - unknown - cancelled - failed)"

_LOOK = f"""
SELECT coalesce(min(id) FILTER (WHERE state <> 'done'), max(id) + 1, %(low)s + 1) - 1 AS low,
       count(*) FILTER (WHERE state <> 'done') AS batches,
       count(*) FILTER (WHERE state = 'open' AND published_at IS NOT NULL) AS queued,
       count(*) FILTER (WHERE state = 'claimed') AS claimed,
       count(*) FILTER (WHERE state = 'open' AND due_at > now() + make_interval(secs => %(far)s)) AS resting,
       coalesce(sum({_LEFT}) FILTER (WHERE state = 'claimed'), 0)::bigint AS claimed_devices,
       coalesce(sum({_LEFT}) FILTER (WHERE state = 'open' AND published_at IS NOT NULL), 0)::bigint AS queued_devices,
       coalesce((SELECT extract(epoch FROM max(free_at) - clock_timestamp()) FROM {{s}}.limits
                 WHERE scope = ANY(%(scopes)s)), 0)::float8 AS wait,
       coalesce((SELECT extract(epoch FROM max(free_at) - clock_timestamp()) FROM {{s}}.limits
                 WHERE scope = ANY(%(shared)s)), 0)::float8 AS shared_wait
FROM {{s}}.batches WHERE campaign_id = %(campaign)s AND id > %(low)s
"""

_RENEW = """
UPDATE {s}.campaigns SET low_batch_id = %(low)s, fanout_until = now() + make_interval(secs => %(seconds)s)
WHERE id = %(campaign)s
"""

_TAKE = f"""
WITH free AS (
    SELECT id, {_LEFT} AS size FROM {{s}}.batches
    WHERE campaign_id = %(campaign)s AND id > %(low)s AND state = 'open' AND published_at IS NULL
      AND (due_at IS NULL OR due_at <= now())
    ORDER BY id LIMIT %(most)s FOR UPDATE SKIP LOCKED
), counted AS (
    SELECT id, size, sum(size) OVER (ORDER BY id) AS devices, row_number() OVER (ORDER BY id) AS place FROM free
)
UPDATE {{s}}.batches b SET published_at = now()
FROM counted
WHERE b.id = counted.id AND (counted.place <= %(least)s OR counted.devices <= %(devices)s)
RETURNING b.id, counted.size
"""


def look(
    transaction: Transaction, *, campaign_id: int, app_id: int, low: int, seconds: float, far: float = 30.0
) -> Open:
    """How much of a campaign is open; `far`: from how many seconds on a batch rests. Also moves its low-water mark up,
    and renews the fan-out's reservation by `seconds`: its row must be held."""
    shared = [INSTALLATION, f"app:{app_id}"]
    scopes = [*shared, f"campaign:{campaign_id}"]
    values = {"campaign": campaign_id, "low": low, "scopes": scopes, "shared": shared, "far": far}
    (row,) = transaction.rows(_LOOK, values)
    transaction.execute(_RENEW, {"campaign": campaign_id, "low": row.pop("low"), "seconds": seconds})
    return Open(**row | {"wait": max(0.0, row["wait"])})


def take(
    transaction: Transaction, campaign_id: int, low: int, *, most: int, least: int = 0, devices: int | None = None
) -> list[tuple[int, int]]:
    """Open batches that are due and not published, now marked as published (a hint: the message may yet be lost).

    At most `most` of them; with `devices`, no more than hold so many, though `least` of them in any case. Returns
    (id, devices without an outcome) of each, in their order.
    """
    values = {
        "campaign": campaign_id,
        "low": low,
        "most": most,
        "least": least if devices is not None else most,
        "devices": devices or 0,
    }
    return sorted((id, size) for id, size in transaction.execute(_TAKE, values))
