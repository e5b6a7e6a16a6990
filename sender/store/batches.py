"""Batches: cut from the audience, claimed under (owner, epoch), released, reclaimed. The claim is what makes a
redelivered or doubled message harmless: it succeeds once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sender.model import TOPIC_SUFFIX, PushHeaders, PushType
from sender.policy.outcomes import INTERNAL_ERROR
from sender.policy.poison import FIRST_DELAY, LONGEST_DELAY, MOST_FAILURES, MOST_FAILURES_ALONE, STREWN
from sender.store.database import Transaction, dictionaries


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
    estimate: int  # devices that were counted when it started
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
    failures: int  # errors of our own, and workers that died with it
    device_ids: tuple[int, ...]
    campaign: CampaignWork
    loaded_at: datetime  # by the database's clock

    @property
    def fresh(self) -> bool:
        """Whether nobody can have sent, recorded or announced anything of it."""
        return self.kind == "first" and self.epoch == 1

    @property
    def retest(self) -> bool:
        """Whether its devices come out of quarantine: each is tried once."""
        return self.kind == "retest"

    @property
    def waits_until(self) -> datetime | None:
        """Until when its deliveries may wait for another attempt; None: there is none."""
        return None if self.retest else self.campaign.expiration

    @property
    def suspect(self) -> bool:
        """Whether it is one device that failed before: it is sent while no other such device is."""
        return self.failures > 0 and len(self.device_ids) == 1


_CLAIMED_COLUMNS = """
          b.id AS batch_id, b.epoch, b.owner, b.kind, b.setbacks, b.failures, b.device_ids, now() AS loaded_at,
          c.id, c.key, c.app_id, a.bundle_id, c.payload, c.push_type, c.priority, c.collapse_id, c.delivery,
          c.expiration, c.started_on, c.rate, a.rate AS app_rate,
          c.epoch AS campaign_epoch, CASE WHEN c.cut_finished AND coalesce(c.canary_state, 'passed') = 'passed'
               THEN c.cut_devices END AS audience, c.audience_estimate AS estimate, a.healing
"""

_CLAIM = f"""
UPDATE {{s}}.batches b SET state = 'claimed', epoch = b.epoch + 1, owner = %(owner)s, beats = 0, halted = false
FROM {{s}}.campaigns c JOIN {{s}}.apps a ON a.id = c.app_id
WHERE b.id = %(batch)s AND b.state = 'open' AND c.id = b.campaign_id AND c.state = 'running' AND a.state = 'active'
  AND (b.due_at IS NULL OR b.due_at <= now()) AND b.failures < CASE WHEN b.size > 1 THEN %(together)s ELSE %(alone)s END
RETURNING {_CLAIMED_COLUMNS}
"""

#: Waits for nobody, and locks in order: others claim in groups too.
_CLAIM_TOGETHER = f"""
WITH free AS MATERIALIZED (
    SELECT b.id, w.owner
    FROM unnest(%(batches)s::bigint[], %(owners)s::uuid[]) AS w(id, owner) JOIN {{s}}.batches b ON b.id = w.id
    WHERE b.state = 'open' AND b.failures = 0 AND (b.due_at IS NULL OR b.due_at <= now())
    ORDER BY b.id FOR UPDATE OF b SKIP LOCKED
)
UPDATE {{s}}.batches b SET state = 'claimed', epoch = b.epoch + 1, owner = free.owner, beats = 0, halted = false
FROM free, {{s}}.campaigns c JOIN {{s}}.apps a ON a.id = c.app_id
WHERE b.id = free.id AND c.id = b.campaign_id AND c.state = 'running' AND a.state = 'active'
RETURNING {_CLAIMED_COLUMNS}
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

#: The same for those of several batches that were just claimed so.
_FRESH_TARGETS_TOGETHER = """
SELECT b.id, d.id, d.token, d.environment, d.state, d."authorization", d.registered_at, d.blocklisted_until,
       d.blocklisted_times, 0
FROM {s}.batches b CROSS JOIN LATERAL unnest(b.device_ids) WITH ORDINALITY AS i(id, place)
JOIN {s}.devices d ON d.id = i.id
WHERE b.id = ANY(%(batches)s) AND b.owner = ANY(%(owners)s) AND b.kind = 'first' AND b.epoch = 1
ORDER BY b.id, i.place
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
    failures = CASE WHEN %(progress)s THEN 0 ELSE failures END,
    due_at = CASE WHEN %(delay)s > 0 THEN now() + make_interval(secs => %(delay)s) END
WHERE id = %(batch)s AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed'
"""

_GIVE_BACK = """
UPDATE {s}.batches SET state = 'open', owner = NULL, published_at = NULL, failures = least(failures + 1, 1000),
    error = %(error)s, due_at = now() + make_interval(secs => %(delay)s)
WHERE id = %(batch)s AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed'
"""

#: Of a batch that could not even be claimed. One failure each time it was published, however many saw it.
_FAIL_OPEN = """
UPDATE {s}.batches SET published_at = NULL, failures = least(failures + 1, 1000), error = %(error)s,
    due_at = now() + make_interval(secs => least(%(first)s * 2 ^ least(failures, 10), %(longest)s))
WHERE id = %(batch)s AND state = 'open' AND published_at IS NOT NULL
"""

_OTHER_SUSPECT = """
SELECT 1 FROM {s}.batches b JOIN {s}.campaigns c ON c.id = b.campaign_id
WHERE c.id = %(campaign)s AND b.id > c.low_batch_id AND b.state = 'claimed' AND b.size = 1 AND b.failures > 0
  AND b.id <> %(batch)s LIMIT 1
"""

#: Held whoever it belongs to: all who record a batch go through its row first, and never wait for each other crosswise.
_FENCE = """
SELECT epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed' FROM {s}.batches WHERE id = %(batch)s FOR UPDATE
"""

_FINISH = """
UPDATE {s}.batches SET state = 'done', owner = NULL, finished_at = now()
WHERE id = %(batch)s AND epoch = %(epoch)s AND owner = %(owner)s AND state = 'claimed'
"""

_KEEP_ERROR = """
UPDATE {s}.batches SET failed = failed + %(unwritten)s, error = coalesce(%(error)s, error),
    reasons = CASE WHEN %(unwritten)s = 0 THEN reasons ELSE reasons || jsonb_build_object(
        %(reason)s::text, coalesce((reasons->>%(reason)s)::bigint, 0) + %(unwritten)s) END
WHERE id = %(batch)s
"""

_CLAIMED = """
SELECT b.id, b.owner, b.beats FROM {s}.batches b JOIN {s}.campaigns c ON c.id = b.campaign_id
WHERE c.finished_at IS NULL AND c.started_at IS NOT NULL AND b.id > c.low_batch_id AND b.state = 'claimed'
"""

#: The first time it is offered again at once; later those that were lost together go apart.
_RECLAIM = """
UPDATE {s}.batches SET state = 'open', owner = NULL, published_at = NULL, failures = least(failures + 1, 1000),
    error = 'WorkerLost: the worker that held it died, or stood still for longer than its lease',
    due_at = CASE WHEN failures > 0 THEN now() + make_interval(secs => random() * %(strewn)s * failures) END
WHERE id = (SELECT id FROM {s}.batches WHERE id = %(batch)s FOR UPDATE SKIP LOCKED)
  AND owner = %(owner)s AND beats = %(beats)s AND state = 'claimed'
  AND (now() - pg_postmaster_start_time() > make_interval(secs => %(lease)s)
       OR now() < pg_postmaster_start_time())  -- the clock was set back
"""


def claim(transaction: Transaction, batch_id: int) -> Claim | None:
    """Take a batch, or None when it is not open, not due, or its campaign or app does not send now."""
    caps = {"together": MOST_FAILURES, "alone": MOST_FAILURES_ALONE}
    row = transaction.row(_CLAIM, {"batch": batch_id, "owner": uuid4()} | caps)
    if row is None:
        transaction.execute(_UNPUBLISH, (batch_id,))
        return None
    return _claim(row)


def claim_together(
    transaction: Transaction, batch_ids: Sequence[int]
) -> tuple[list[Claim | None], dict[int, list[Target]]]:
    """Take those of several batches that nothing is to be said against; None for each of the others, which need a
    `claim` of their own. A batch that is named twice is taken once. Also returns the devices of the fresh ones."""
    owners = [uuid4() for _ in batch_ids]
    values = {"batches": list(batch_ids), "owners": owners}
    claimed = transaction.execute(_CLAIM_TOGETHER, values)
    found = transaction.execute(_FRESH_TARGETS_TOGETHER, values)
    claims = {row["owner"]: _claim(row) for row in dictionaries(claimed)}
    targets: dict[int, list[Target]] = {claim.batch_id: [] for claim in claims.values() if claim.fresh}
    for batch_id, *target in found.fetchall():
        targets[batch_id].append(Target._make(target))
    return [claims.get(owner) for owner in owners], targets


def _claim(row: Mapping[str, Any]) -> Claim:
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
        estimate=row["estimate"],
        healing=row["healing"],
    )
    return Claim(
        batch_id=row["batch_id"],
        epoch=row["epoch"],
        owner=row["owner"],
        kind=row["kind"],
        setbacks=row["setbacks"],
        failures=row["failures"],
        device_ids=tuple(row["device_ids"]),
        campaign=campaign,
        loaded_at=row["loaded_at"],
    )


def targets(transaction: Transaction, claim: Claim) -> list[Target]:
    """The devices of a claim that are neither final nor waiting for a retry elsewhere, in the order of the cut."""
    cursor = transaction.execute(_FRESH_TARGETS if claim.fresh else _TARGETS, _places(claim))
    return list(map(Target._make, cursor.fetchall()))


def settled(transaction: Transaction, claim: Claim) -> set[int]:
    """The devices of a claim that need nothing more from it: final, or waiting for a retry elsewhere."""
    if claim.fresh:
        return set()
    return {id for (id,) in transaction.execute(_SETTLED, _places(claim))}


def fence(transaction: Transaction, claim: Claim) -> bool:
    """Whether the claim is still ours; holds its row until the transaction ends."""
    row = transaction.execute(_FENCE, _name(claim)).fetchone()
    return row is not None and bool(row[0])


def release(
    transaction: Transaction, claim: Claim, *, delay: float = 0.0, setbacks: int = 0, progress: bool = False
) -> bool:
    """Give a claim back, for anybody to take after `delay` seconds; `progress`: its devices went through, and what
    failed before is forgotten. False when it is no longer ours."""
    values = _name(claim) | {"delay": delay, "setbacks": setbacks, "progress": progress}
    return transaction.execute(_RELEASE, values).rowcount == 1


def give_back(transaction: Transaction, claim: Claim, *, error: str, delay: float) -> bool:
    """Give a claim back after an error of our own, which counts as a failure. False when it is no longer ours."""
    return transaction.execute(_GIVE_BACK, _name(claim) | {"error": error, "delay": delay}).rowcount == 1


def fail_open(transaction: Transaction, batch_id: int, *, error: str) -> bool:
    """Count a failure of a batch that could not be claimed. False when somebody else has counted or claimed it."""
    values = {"batch": batch_id, "error": error, "first": FIRST_DELAY, "longest": LONGEST_DELAY}
    return transaction.execute(_FAIL_OPEN, values).rowcount == 1


def other_suspect(transaction: Transaction, claim: Claim) -> bool:
    """Whether another single device of the campaign that failed before is being sent just now."""
    values = {"campaign": claim.campaign.id, "batch": claim.batch_id}
    return transaction.execute(_OTHER_SUSPECT, values).fetchone() is not None


def finish(transaction: Transaction, claim: Claim) -> bool:
    """End a claim of which nothing is left to send. False when it is no longer ours."""
    return transaction.execute(_FINISH, _name(claim)).rowcount == 1


def keep_error(transaction: Transaction, claim: Claim, error: str | None, *, unwritten: int = 0) -> None:
    """Keep the last error of ours on a claim's deliveries; `unwritten`: those that the ledger does not take, which are
    counted as failed all the same."""
    values = {"unwritten": unwritten, "error": error, "reason": INTERNAL_ERROR, "batch": claim.batch_id}
    transaction.execute(_KEEP_ERROR, values)


def claimed(transaction: Transaction) -> list[tuple[int, UUID, int]]:
    """Every claim there is: (batch, owner, heartbeats so far)."""
    return [(id, owner, beats) for id, owner, beats in transaction.execute(_CLAIMED)]


def reclaim(transaction: Transaction, batch_id: int, owner: UUID, beats: int, *, lease: float) -> bool:
    """Take a batch back from an owner whose heartbeat stood still at `beats`; not within a lease (seconds) of the
    database's own start, and not while its owner records it."""
    values = {"batch": batch_id, "owner": owner, "beats": beats, "lease": lease, "strewn": STREWN}
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
