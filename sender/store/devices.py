"""What APNs's answers do to device rows: set-based, one statement each, compare-and-set, with their changelog rows.

Every statement locks its devices in the order of their ids, so that two batches that share devices cannot deadlock.
Whoever runs more than one of them holds all of the devices first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A 410 for one device, with the row as it was when the push was made. `timestamp` is APNs's."""

    device_id: int
    token: str = field(repr=False)
    environment: str = ""  # stored, when the push was made
    registered_at: datetime | None
    timestamp: datetime | None  # None: the instant of loading counts
    loaded_at: datetime
    reason: str
    apns_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A BadDeviceToken or DeviceTokenNotForTopic for one device."""

    device_id: int
    token: str = field(repr=False)
    environment: str  # stored, when the push was made
    reason: str
    apns_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Throttled:
    """A TooManyRequests for one device: it rests until then. `times` counts them in a row, this one included."""

    device_id: int
    until: datetime
    times: int
    apns_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class Rested:
    """An accepted push to a device that was throttled `times` times in a row, as loaded before it was sent."""

    device_id: int
    times: int


@dataclass(frozen=True, slots=True, kw_only=True)
class InvalidateResult:
    """How many devices became invalid, and how many stayed because they registered after the answer's timestamp."""

    invalidated: int
    kept: int


_HOLD = "SELECT FROM {s}.devices WHERE id = ANY(%s::bigint[]) ORDER BY id FOR NO KEY UPDATE"

_INVALIDATE = """
WITH hit AS MATERIALIZED (
    SELECT DISTINCT ON (device_id) *
    FROM unnest(%(ids)s::bigint[], %(tokens)s::text[], %(registered)s::timestamptz[], %(gone)s::timestamptz[],
                %(reasons)s::text[], %(apns_ids)s::uuid[])
         AS h (device_id, token, registered_at, gone_at, reason, apns_id)
    ORDER BY device_id, gone_at DESC
), judged AS MATERIALIZED (
    SELECT d.id, d.state AS old_state, h.reason, h.apns_id,
           d.registered_at IS NOT DISTINCT FROM h.registered_at AS same,
           d.registered_at IS NOT DISTINCT FROM h.registered_at
              AND (d.registered_at IS NULL OR d.registered_at <= h.gone_at
                   OR coalesce(d.stale_410_campaign_id <> %(campaign)s, false)) AS dead
    FROM {s}.devices d JOIN hit h ON d.id = h.device_id AND d.token = h.token
    WHERE d.state IN ('active', 'blocklisted', 'quarantined')
      AND NOT EXISTS (SELECT FROM {s}.trials t WHERE t.campaign_id = %(campaign)s AND t.environment = d.environment
                                                 AND t.state = 'tripped') -- by another worker, just now
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET
        state = CASE WHEN j.dead THEN 'invalid' ELSE d.state END,
        state_reason = CASE WHEN j.dead THEN j.reason ELSE d.state_reason END,
        state_changed_at = CASE WHEN j.dead THEN now() ELSE d.state_changed_at END,
        state_campaign_id = CASE WHEN j.dead THEN %(campaign)s::bigint ELSE d.state_campaign_id END,
        stale_410_campaign_id = CASE WHEN j.dead THEN NULL WHEN j.same THEN %(campaign)s::bigint
                                     ELSE d.stale_410_campaign_id END
    FROM judged j WHERE d.id = j.id
    RETURNING d.id, d.app_id, d.user_id, j.old_state, j.dead, j.reason, j.apns_id
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id, apns_id)
    SELECT CASE WHEN dead THEN 'invalidated' ELSE 'kept' END, 'apns', app_id, id, user_id,
           CASE WHEN dead THEN jsonb_build_object('state', old_state) END,
           CASE WHEN dead THEN jsonb_build_object('state', 'invalid') END, reason, %(campaign)s, apns_id
    FROM changed ORDER BY id
)
SELECT count(*) FILTER (WHERE dead), count(*) FILTER (WHERE NOT dead) FROM changed
"""


def invalidate(transaction: Transaction, hits: Sequence[Gone], campaign_id: int | None) -> InvalidateResult:
    """Invalidate the devices that APNs calls gone, unless they registered since (Apple: honour 410's `timestamp`).

    A device whose token was replaced meanwhile is left alone. One that registered after the timestamp stays as it is
    and remembers the campaign: the second such answer, from another campaign, invalidates it anyway. An answer to a
    push that was made before the registration says nothing of it.
    """
    if not hits:
        return InvalidateResult(invalidated=0, kept=0)
    found = transaction.execute(
        _INVALIDATE,
        {
            "ids": [hit.device_id for hit in hits],
            "tokens": [hit.token for hit in hits],
            "registered": [hit.registered_at for hit in hits],
            "gone": [hit.timestamp or hit.loaded_at for hit in hits],
            "reasons": [hit.reason for hit in hits],
            "apns_ids": [hit.apns_id for hit in hits],
            "campaign": campaign_id,
        },
    ).fetchone()
    invalidated, kept = found or (0, 0)
    return InvalidateResult(invalidated=invalidated, kept=kept)


#: The second hit of a later campaign confirms the first, while pushes to the same app and environment are accepted in
#: that campaign: most of them, until it is trusted. Campaigns that run at the same time may share one fault of the
#: configuration. What a campaign got that the guard tripped is no first hit: the later campaign's is.
_QUARANTINE = """
WITH hit AS MATERIALIZED (
    SELECT DISTINCT ON (device_id) *
    FROM unnest(%(ids)s::bigint[], %(tokens)s::text[], %(environments)s::text[], %(reasons)s::text[],
                %(apns_ids)s::uuid[])
         AS h (device_id, token, environment, reason, apns_id)
), held AS MATERIALIZED (
    SELECT d.id, d.state AS old_state, h.reason, h.apns_id,
           CASE WHEN d.state = 'quarantined' AND NOT EXISTS (
                    SELECT FROM {s}.trials t WHERE t.campaign_id = d.state_campaign_id
                                               AND t.environment = d.environment AND (t.state = 'tripped' OR t.resumed))
                THEN 'invalid' ELSE 'quarantined' END AS new_state
    FROM {s}.devices d JOIN hit h ON d.id = h.device_id AND d.token = h.token AND d.environment = h.environment
    WHERE d.state IN ('active', 'blocklisted')
       OR d.state = 'quarantined' AND d.state_campaign_id <> %(campaign)s
          AND d.state_changed_at < (SELECT started_at FROM {s}.campaigns WHERE id = %(campaign)s)
          AND EXISTS (SELECT FROM {s}.trials t WHERE t.campaign_id = %(campaign)s AND t.environment = d.environment
                      AND t.accepted - t.moved > CASE t.state WHEN 'trusted' THEN 0 ELSE t.bad_token + t.wrong_topic END
                      AND t.state <> 'tripped')
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET state = h.new_state, state_reason = h.reason, state_changed_at = now(),
                             state_campaign_id = %(campaign)s
    FROM held h WHERE d.id = h.id
    RETURNING d.id, d.app_id, d.user_id, d.environment, h.old_state, h.new_state, h.reason, h.apns_id
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id, apns_id)
    SELECT CASE new_state WHEN 'invalid' THEN 'invalidated' ELSE 'quarantined' END, 'apns', app_id, id, user_id,
           jsonb_build_object('state', old_state),
           jsonb_build_object('state', new_state, 'environment', environment), reason, %(campaign)s, apns_id
    FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""


def quarantine(transaction: Transaction, hits: Sequence[Suspect], campaign_id: int | None) -> int:
    """Set aside devices whose token, or whose configuration, APNs calls wrong; those that an earlier campaign set
    aside are invalid now. Devices that got another token or moved to the other environment meanwhile are left alone.
    Returns how many changed."""
    if not hits:
        return 0
    return _count(
        transaction,
        _QUARANTINE,
        {
            "ids": [hit.device_id for hit in hits],
            "tokens": [hit.token for hit in hits],
            "environments": [hit.environment for hit in hits],
            "reasons": [hit.reason for hit in hits],
            "apns_ids": [hit.apns_id for hit in hits],
            "campaign": campaign_id,
        },
    )


_BLOCKLIST = """
WITH hit AS MATERIALIZED (
    SELECT DISTINCT ON (device_id) *
    FROM unnest(%(ids)s::bigint[], %(untils)s::timestamptz[], %(times)s::smallint[], %(apns_ids)s::uuid[])
         AS h (device_id, until, times, apns_id)
    ORDER BY device_id, times DESC
), held AS MATERIALIZED (
    SELECT d.id, d.state AS old_state, d.blocklisted_until AS old_until, h.until, h.times, h.apns_id
    FROM {s}.devices d JOIN hit h ON d.id = h.device_id
    WHERE d.state IN ('active', 'blocklisted') AND d.blocklisted_times < h.times
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET state = 'blocklisted', state_reason = 'TooManyRequests', state_changed_at = now(),
                             state_campaign_id = %(campaign)s, blocklisted_times = h.times,
                             blocklisted_until = greatest(d.blocklisted_until, h.until)
    FROM held h WHERE d.id = h.id
    RETURNING d.id, d.app_id, d.user_id, d.blocklisted_until, h.old_state, h.old_until, h.times, h.apns_id
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id, apns_id)
    SELECT 'blocklisted', 'apns', app_id, id, user_id,
           jsonb_strip_nulls(jsonb_build_object('state', old_state, 'until', old_until)),
           jsonb_build_object('state', 'blocklisted', 'until', blocklisted_until, 'times', times),
           'TooManyRequests', %(campaign)s, apns_id
    FROM changed ORDER BY id
)
SELECT count(*) FROM changed
"""


def blocklist(transaction: Transaction, hits: Sequence[Throttled], campaign_id: int | None) -> int:
    """Let devices rest after TooManyRequests. Returns how many changed.

    `times` is the compare-and-set: answers that two campaigns get at the same moment count as one step.
    """
    if not hits:
        return 0
    return _count(
        transaction,
        _BLOCKLIST,
        {
            "ids": [hit.device_id for hit in hits],
            "untils": [hit.until for hit in hits],
            "times": [hit.times for hit in hits],
            "apns_ids": [hit.apns_id for hit in hits],
            "campaign": campaign_id,
        },
    )


_CLEAR_BLOCKLIST = """
WITH held AS MATERIALIZED (
    SELECT d.id, d.state AS old_state
    FROM {s}.devices d JOIN unnest(%(ids)s::bigint[], %(times)s::int[]) AS c (id, times) USING (id)
    WHERE d.blocklisted_times = c.times AND d.state IN ('active', 'blocklisted')
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET state = 'active', blocklisted_times = 0, blocklisted_until = NULL,
        state_reason = CASE WHEN h.old_state = 'blocklisted' THEN NULL ELSE d.state_reason END,
        state_changed_at = CASE WHEN h.old_state = 'blocklisted' THEN now() ELSE d.state_changed_at END,
        state_campaign_id = CASE WHEN h.old_state = 'blocklisted' THEN %(campaign)s ELSE d.state_campaign_id END
    FROM held h WHERE d.id = h.id
    RETURNING d.id, d.app_id, d.user_id, h.old_state
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, campaign_id)
    SELECT 'unblocked', 'apns', app_id, id, user_id, '{"state": "blocklisted"}', '{"state": "active"}', %(campaign)s
    FROM changed WHERE old_state = 'blocklisted' ORDER BY id
)
SELECT count(*) FROM changed
"""


def clear_blocklist(transaction: Transaction, rested: Sequence[Rested], campaign_id: int | None) -> int:
    """End the blocklisting of devices whose push was accepted. Returns how many changed; free when there are none.

    `times` is the compare-and-set: a device that another campaign was told to let rest meanwhile goes on resting.
    """
    if not rested:
        return 0
    values = {"ids": [each.device_id for each in rested], "times": [each.times for each in rested]}
    return _count(transaction, _CLEAR_BLOCKLIST, values | {"campaign": campaign_id})


def hold(transaction: Transaction, device_ids: Collection[int]) -> None:
    """Hold these devices until the transaction ends."""
    transaction.execute(_HOLD, (list(device_ids),))


def _count(transaction: Transaction, statement: str, params: dict[str, object]) -> int:
    found = transaction.execute(statement, params).fetchone()
    return int(found[0]) if found else 0
