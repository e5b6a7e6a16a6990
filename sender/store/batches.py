"""Batches: cut from the audience, claimed under (owner, epoch), released, reclaimed. The claim is what makes a
redelivered or doubled message harmless: it succeeds once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple
from uuid import UUID, uuid4

from sender.model import TOPIC_SUFFIX, PushHeaders, PushType
from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class CampaignWork:
    """What a worker must know of a campaign to send a batch of it."""

    id: int
    key: str
    app_id: int
    bundle_id: str
    payload: bytes
    headers: PushHeaders
    delivery: str
    expiration: datetime | None  # None: one attempt, never stored
    started_on: date
    rate: float | None  # pushes a second; None: unlimited
    app_rate: float | None
    epoch: int  # moved by pause, resume and changes of rate
    audience: int | None  # devices that were cut; None: the cut has not ended
    healing: bool  # whether a BadDeviceToken is tried in the other environment


class Target(NamedTuple):
    """A device of a batch, as loaded when the batch was claimed. Its fields are the columns of `_TARGETS`, in order;
    a tuple, because one is made for every push."""

    device_id: int
    token: str
    environment: str
    state: str
    authorization: str
    registered_at: datetime | None
    blocklisted_until: datetime | None
    blocklisted_times: int
    attempts: int  # charged before this one

    def __repr__(self) -> str:
        return f"Target(device_id={self.device_id}, state={self.state!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A batch that this worker may send, until its lease ends."""

    batch_id: int
    epoch: int
    owner: UUID
    kind: str
    setbacks: int
    device_ids: tuple[int, ...]
    campaign: CampaignWork
    loaded_at: datetime  # by the database's clock


_CLAIM = """
UPDATE {s}.batches b SET state = 'claimed', epoch = b.epoch + 1, owner = %(owner)s, beats = 0
FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
WHERE b.id = %(batch)s AND b.state = 'open' AND c.id = b.campaign_id AND c.state = 'running' AND a.state = 'active'
  AND (b.due_at IS NULL OR b.due_at <= now())
RETURNING b.id AS batch_id, b.epoch, b.kind, b.setbacks, b.device_ids, now() AS loaded_at,
          c.id, c.key, c.app_id, a.bundle_id, c.payload, c.push_type, c.priority, c.collapse_id, c.delivery,
          c.expiration, c.started_on, c.rate, a.rate AS app_rate,
          c.epoch AS campaign_epoch, CASE WHEN c.cut_finished AND coalesce(c.canary_state, 'passed') = 'passed'
               THEN c.cut_devices END AS audience, a.healing
"""

#: A batch that cannot be claimed now goes back to those that fan-out or sweep publish.
_UNPUBLISH = "UPDATE {s}.batches SET published_at = NULL WHERE id = %s AND state = 'open'"

#: Looked up a device at a time: the ledger of a new campaign has no statistics, and a join would read all of it. The
#: LIMIT keeps PostgreSQL from making a join of it.
_TARGETS = """
SELECT d.id, d.token, d.environment, d.state, d."authorization", d.registered_at, d.blocklisted_until,
       d.blocklisted_times, coalesce(r.attempts, 0)
FROM unnest((SELECT device_ids FROM {s}.batches WHERE id = %(batch)s)) WITH ORDINALITY AS i(id, place)
JOIN {s}.devices d ON d.id = i.id
LEFT JOIN LATERAL (
    SELECT r.device_id, r.batch_id, r.attempts FROM {s}.retries r
    WHERE r.campaign_id = %(campaign)s AND r.device_id = i.id LIMIT 1
) r ON true
LEFT JOIN LATERAL (
    SELECT true AS final FROM {s}.deliveries l
    WHERE l.campaign_started_on = %(started_on)s AND l.campaign_id = %(campaign)s AND l.device_id = i.id LIMIT 1
) l ON true
WHERE l.final IS NULL AND (r.device_id IS NULL OR r.batch_id = %(batch)s)
ORDER BY i.place
"""

#: Nothing can be in the ledger or in the retries for a first send that was never claimed before.
_FRESH_TARGETS = """
SELECT d.id, d.token, d.environment, d.state, d."authorization", d.registered_at, d.blocklisted_until,
       d.blocklisted_times, 0
FROM unnest((SELECT device_ids FROM {s}.batches WHERE id = %(batch)s)) WITH ORDINALITY AS i(id, place)
JOIN {s}.devices d ON d.id = i.id
ORDER BY i.place
"""

_SETTLED = """
SELECT i.id FROM unnest((SELECT device_ids FROM {s}.batches WHERE id = %(batch)s)) AS i(id)
LEFT JOIN LATERAL (
    SELECT true AS final FROM {s}.deliveries l
    WHERE l.campaign_started_on = %(started_on)s AND l.campaign_id = %(campaign)s AND l.device_id = i.id LIMIT 1
) l ON true
LEFT JOIN LATERAL (
    SELECT true AS elsewhere FROM {s}.retries r
    WHERE r.campaign_id = %(campaign)s AND r.device_id = i.id AND r.batch_id IS DISTINCT FROM %(batch)s LIMIT 1
) r ON true
WHERE l.final OR r.elsewhere
"""

_RELEASE = """
UPDATE {s}.batches SET state = 'open', owner = NULL, published_at = NULL, setbacks = %(setbacks)s,
    due_at = CASE WHEN %(delay)s > 0 THEN now() + make_interval(secs => %(delay)s) END
WHERE id = %(batch)s AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed'
"""

_FENCE = """
SELECT 1 FROM {s}.batches WHERE id = %(batch)s AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed'
FOR UPDATE
"""

_FINISH = """
UPDATE {s}.batches SET state = 'done', owner = NULL, finished_at = now()
WHERE id = %(batch)s AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed'
"""

_CLAIMED = """
SELECT b.id, b.owner, b.beats FROM {s}.batches b JOIN {s}.campaigns c ON c.id = b.campaign_id
WHERE c.finished_at IS NULL AND c.started_at IS NOT NULL AND b.id > c.low_batch_id AND b.state = 'claimed'
"""

_RECLAIM = """
UPDATE {s}.batches SET state = 'open', owner = NULL, published_at = NULL
WHERE id = (SELECT id FROM {s}.batches WHERE id = %(batch)s FOR UPDATE SKIP LOCKED)
  AND owner = %(owner)s AND beats = %(beats)s AND state = 'claimed'
  AND now() - pg_postmaster_start_time() > make_interval(secs => %(lease)s)
"""


def claim(transaction: Transaction, batch_id: int) -> Claim | None:
    """Take a batch, or None when it is not open, not due, or its campaign or app does not send now."""
    owner = uuid4()
    row = transaction.row(_CLAIM, {"batch": batch_id, "owner": owner})
    if row is None:
        transaction.execute(_UNPUBLISH, (batch_id,))
        return None
    expiration: datetime | None = row["expiration"]
    push_type = PushType(row["push_type"])
    headers = PushHeaders(
        topic=row["bundle_id"] + TOPIC_SUFFIX[push_type],
        push_type=push_type,
        priority=row["priority"],
        expiration=int(expiration.timestamp()) if expiration is not None else 0,
        collapse_id=row["collapse_id"],
    )
    campaign = CampaignWork(
        id=row["id"],
        key=row["key"],
        app_id=row["app_id"],
        bundle_id=row["bundle_id"],
        payload=bytes(row["payload"]),
        headers=headers,
        delivery=row["delivery"],
        expiration=expiration,
        started_on=row["started_on"],
        rate=row["rate"],
        app_rate=row["app_rate"],
        epoch=row["campaign_epoch"],
        audience=row["audience"],
        healing=row["healing"],
    )
    return Claim(
        batch_id=row["batch_id"],
        epoch=row["epoch"],
        owner=owner,
        kind=row["kind"],
        setbacks=row["setbacks"],
        device_ids=tuple(row["device_ids"]),
        campaign=campaign,
        loaded_at=row["loaded_at"],
    )


def targets(transaction: Transaction, claim: Claim) -> list[Target]:
    """The devices of a claim that are neither final nor waiting for a retry elsewhere, in the order of the cut."""
    fresh = claim.kind == "first" and claim.epoch == 1
    cursor = transaction.execute(_FRESH_TARGETS if fresh else _TARGETS, _places(claim))
    return list(map(Target._make, cursor.fetchall()))


def settled(transaction: Transaction, claim: Claim) -> set[int]:
    """The devices of a claim that need nothing more from it: final, or waiting for a retry elsewhere."""
    if claim.kind == "first" and claim.epoch == 1:
        return set()
    return {id for (id,) in transaction.execute(_SETTLED, _places(claim))}


def fence(transaction: Transaction, claim: Claim) -> bool:
    """Whether the claim is still ours; holds its row until the transaction ends."""
    return transaction.execute(_FENCE, _name(claim)).fetchone() is not None


def release(transaction: Transaction, claim: Claim, *, delay: float = 0.0, setbacks: int = 0) -> bool:
    """Give a claim back, for anybody to take after `delay` seconds. False when it is no longer ours."""
    values = _name(claim) | {"delay": delay, "setbacks": setbacks}
    return transaction.execute(_RELEASE, values).rowcount == 1


def finish(transaction: Transaction, claim: Claim) -> bool:
    """End a claim of which nothing is left to send. False when it is no longer ours."""
    return transaction.execute(_FINISH, _name(claim)).rowcount == 1


def claimed(transaction: Transaction) -> list[tuple[int, UUID, int]]:
    """Every claim there is: (batch, owner, heartbeats so far)."""
    return [(id, owner, beats) for id, owner, beats in transaction.execute(_CLAIMED)]


def reclaim(transaction: Transaction, batch_id: int, owner: UUID, beats: int, *, lease: float) -> bool:
    """Take a batch back from an owner whose heartbeat stood still at `beats`; not within a lease (seconds) of the
    database's own start, and not while its owner records it."""
    values = {"batch": batch_id, "owner": owner, "beats": beats, "lease": lease}
    return transaction.execute(_RECLAIM, values).rowcount == 1


def _name(claim: Claim) -> dict[str, object]:
    return {"batch": claim.batch_id, "epoch": claim.epoch, "owner": claim.owner}


def _places(claim: Claim) -> dict[str, object]:
    return {
        "campaign": claim.campaign.id,
        "started_on": claim.campaign.started_on,
        "batch": claim.batch_id,
    }


def as_array(ids: Sequence[int]) -> str:
    """A bigint[] as PostgreSQL writes it: arrays of arrays of unequal length cannot travel as parameters."""
    return "{" + ",".join(map(str, ids)) + "}"
