"""The guard's books: a row per campaign and environment, what a trial has outstanding, and the 410s that wait for its
verdict.

Whoever needs more than one of these rows locks the trial first, then what is usual for the app, the campaign, and then
all of the devices at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sender.policy.guard import Counts
from sender.policy.states import TRIAL_MOVES, TrialState, sources
from sender.store import devices
from sender.store.batches import Claim
from sender.store.database import Transaction
from sender.store.devices import Gone


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How far the guard trusts a campaign in one environment, and the answers that it knows of."""

    campaign_id: int
    environment: str
    state: TrialState
    counts: Counts
    probed: int
    resumed: bool  # by a person, after a trip


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What a claim may issue of a trial. `held`: whether the claim has pushes of it outstanding already."""

    state: TrialState
    pushes: int = 0
    held: bool = False
    resumed: bool = False
    counts: Counts = field(default_factory=Counts)
    probed: int = 0  # by all workers


_OPEN = "INSERT INTO {s}.trials (campaign_id, environment) VALUES (%s, %s) ON CONFLICT DO NOTHING"

#: A worker that stands still with the lock must not hold up those that only ask.
_LOCK = """
SELECT state, resumed, accepted, bad_token, wrong_topic, gone, moved, probed FROM {s}.trials
WHERE campaign_id = %s AND environment = %s FOR NO KEY UPDATE SKIP LOCKED
"""

#: Under the lock, and a statement of its own, so that it sees what the last holder of the lock reserved.
_RESERVE = """
WITH held AS (
    SELECT r.batch_id, r.pushes
    FROM {s}.reservations r JOIN {s}.batches b ON b.id = r.batch_id AND b.epoch = r.epoch AND b.state = 'claimed'
    WHERE r.campaign_id = %(campaign)s AND r.environment = %(environment)s
), room AS (
    SELECT greatest(0, least(%(wanted)s, %(most)s - coalesce(sum(pushes), 0)))::int AS pushes,
           coalesce(bool_or(batch_id = %(batch)s), false) AS held
    FROM held
), reserved AS (
    INSERT INTO {s}.reservations AS r (campaign_id, environment, batch_id, epoch, pushes)
    SELECT %(campaign)s, %(environment)s, %(batch)s, %(epoch)s, pushes FROM room WHERE pushes > 0
    ON CONFLICT (campaign_id, environment, batch_id) DO UPDATE
    SET pushes = CASE WHEN r.epoch = excluded.epoch THEN r.pushes ELSE 0 END + excluded.pushes, epoch = excluded.epoch
)
SELECT pushes, held FROM room
"""

#: Also gives back what the claim had reserved: its batch is recorded in this transaction.
_ADD = """
WITH freed AS (
    DELETE FROM {s}.reservations
    WHERE campaign_id = %(campaign)s AND environment = %(environment)s AND batch_id = %(batch)s AND epoch <= %(epoch)s
)
INSERT INTO {s}.trials AS t (campaign_id, environment, judged, accepted, bad_token, wrong_topic, gone, probed, moved)
VALUES (%(campaign)s, %(environment)s, %(judged)s, %(accepted)s, %(bad_token)s, %(wrong_topic)s, %(gone)s, %(probed)s,
        %(moved)s)
ON CONFLICT (campaign_id, environment) DO UPDATE SET
    judged = t.judged + excluded.judged, accepted = t.accepted + excluded.accepted,
    bad_token = t.bad_token + excluded.bad_token, wrong_topic = t.wrong_topic + excluded.wrong_topic,
    gone = t.gone + excluded.gone, probed = t.probed + excluded.probed, moved = t.moved + excluded.moved
RETURNING campaign_id, environment, state, accepted, bad_token, wrong_topic, gone, moved, probed, resumed
"""

_PROBED = """
UPDATE {s}.trials SET probed = probed + %(probed)s, moved = moved + %(moved)s, accepted = accepted + %(moved)s,
    judged = judged + %(moved)s
WHERE campaign_id = %(campaign)s AND environment = %(environment)s
RETURNING probed, moved
"""

_MOVE = """
WITH freed AS (DELETE FROM {s}.reservations WHERE campaign_id = %(campaign)s AND environment = %(environment)s)
UPDATE {s}.trials SET state = %(to)s, judged_at = now()
WHERE campaign_id = %(campaign)s AND environment = %(environment)s AND state = ANY(%(from)s)
"""

_ANEW = """
UPDATE {s}.trials SET state = 'trial', resumed = true, judged_at = NULL, judged = 0, accepted = 0,
    bad_token = 0, wrong_topic = 0, gone = 0, probed = 0, moved = 0
WHERE campaign_id = (SELECT id FROM {s}.campaigns WHERE key = %s) AND state = 'tripped'
"""

_COLUMNS = """
t.campaign_id, t.environment, t.state, t.accepted, t.bad_token, t.wrong_topic, t.gone, t.moved, t.probed,
t.resumed
"""

_OF = f"SELECT {_COLUMNS} FROM {{s}}.trials t WHERE t.campaign_id = %s"

#: Nothing of the campaign is open, and no more of it waits for a retry than was judged: the audience was too small to
#: end the trial.
_ENDED = f"""
SELECT c.app_id, {_COLUMNS} FROM {{s}}.trials t JOIN {{s}}.campaigns c ON c.id = t.campaign_id
WHERE t.state = 'trial' AND c.finished_at IS NULL
  AND (c.state = 'running' AND c.cut_finished AND coalesce(c.canary_state, 'passed') = 'passed'
       OR c.state IN ('cancelled', 'failed'))
  AND NOT EXISTS (
      SELECT FROM {{s}}.batches b WHERE b.campaign_id = c.id AND b.id > c.low_batch_id AND b.state <> 'done')
  AND (SELECT count(*) FROM (
      SELECT FROM {{s}}.retries r WHERE r.campaign_id = c.id ORDER BY r.device_id LIMIT t.judged + 1) AS waiting)
      <= t.judged
"""

#: Of a trusted campaign, whose worker would have decided on them long ago. There are hardly ever any staged rows.
_LEFT_BEHIND = """
SELECT DISTINCT s.campaign_id, s.environment
FROM {s}.staged s JOIN {s}.campaigns c ON c.id = s.campaign_id
JOIN {s}.trials t ON t.campaign_id = s.campaign_id AND t.environment = s.environment
WHERE t.state = 'trusted' AND c.finished_at < now() - interval '5 minutes'
"""

_STAGE = """
INSERT INTO {s}.staged (campaign_id, environment, device_id, token, registered_at, gone_at, reason, apns_id)
SELECT %(campaign)s, h.* FROM unnest(%(environments)s::text[], %(ids)s::bigint[], %(tokens)s::text[],
    %(registered)s::timestamptz[], %(gone)s::timestamptz[], %(reasons)s::text[], %(apns_ids)s::uuid[])
    AS h (environment, device_id, token, registered_at, gone_at, reason, apns_id)
WHERE EXISTS (SELECT FROM {s}.devices d WHERE d.id = h.device_id) -- whoever was forgotten meanwhile stays so
ON CONFLICT DO NOTHING
"""

_TAKE_STAGED = """
DELETE FROM {s}.staged WHERE campaign_id = %s AND environment = %s
RETURNING device_id, token, environment, registered_at, gone_at, reason, apns_id
"""


def reserve(transaction: Transaction, claim: Claim, environment: str, *, wanted: int, most: int) -> Room | None:
    """Leave to have up to `wanted` more pushes of a trial outstanding, of `most` over all workers. Opens the trial.
    None when somebody else is at it just now.

    What a claim reserved is void when the claim is: it is counted with its batch, so that a dead worker leaks nothing.
    """
    campaign_id = claim.campaign.id
    found = transaction.execute(_LOCK, (campaign_id, environment)).fetchone()
    if found is None:
        transaction.execute(_OPEN, (campaign_id, environment))
        found = transaction.execute(_LOCK, (campaign_id, environment)).fetchone()
    if found is None:
        return None
    state, resumed, accepted, bad_token, wrong_topic, gone, moved, probed = found
    counts = Counts(accepted=accepted, bad_token=bad_token, wrong_topic=wrong_topic, gone=gone, moved=moved)
    if state != TrialState.TRIAL:
        return Room(state=TrialState(state), resumed=resumed, counts=counts, probed=probed)
    values = {
        "campaign": campaign_id,
        "environment": environment,
        "batch": claim.batch_id,
        "epoch": claim.epoch,
        "wanted": wanted,
        "most": most,
    }
    pushes, held = transaction.execute(_RESERVE, values).fetchone() or (0, False)
    return Room(state=TrialState.TRIAL, pushes=pushes, held=held, counts=counts, probed=probed)


def add(transaction: Transaction, claim: Claim, environment: str, counts: Counts, *, probed: int) -> Trial:
    """Enter the answers of a claim that is recorded in this transaction; returns the trial, whose row stays locked."""
    (row,) = transaction.execute(
        _ADD,
        {
            "campaign": claim.campaign.id,
            "environment": environment,
            "batch": claim.batch_id,
            "epoch": claim.epoch,
            "judged": counts.judged,
            "accepted": counts.accepted,
            "bad_token": counts.bad_token,
            "wrong_topic": counts.wrong_topic,
            "gone": counts.gone,
            "moved": counts.moved,
            "probed": probed,
        },
    ).fetchall()
    return _trial(row)


def note_probes(
    transaction: Transaction, campaign_id: int, environment: str, *, probed: int, moved: int
) -> tuple[int, int]:
    """Count probes and moves of a campaign that is trusted; returns those of all workers (0 where nothing is kept)."""
    values = {"probed": probed, "moved": moved, "campaign": campaign_id, "environment": environment}
    found = transaction.execute(_PROBED, values).fetchone()
    return (found[0], found[1]) if found else (0, 0)


def trust(transaction: Transaction, campaign_id: int, environment: str) -> bool:
    """End a trial well: what was staged of it may be taken. False when somebody else ended it."""
    return _move(transaction, campaign_id, environment, TrialState.TRUSTED)


def trip(transaction: Transaction, campaign_id: int, environment: str) -> bool:
    """Trust a campaign no more: what was staged of it is dropped. False when somebody else tripped it."""
    if not _move(transaction, campaign_id, environment, TrialState.TRIPPED):
        return False
    transaction.execute(_TAKE_STAGED, (campaign_id, environment))
    return True


def begin_anew(transaction: Transaction, key: str) -> None:
    """A person resumes a campaign: where the guard tripped it starts slowly again. To be called before the campaign's
    row is locked, and once more when it is: who trips it then waits for that row, and finds a campaign that runs."""
    transaction.execute(_ANEW, (key,))


def of(transaction: Transaction, campaign_id: int) -> dict[str, Trial]:
    """A campaign's trials by environment."""
    return {trial.environment: trial for trial in map(_trial, transaction.execute(_OF, (campaign_id,)))}


def ended(transaction: Transaction) -> list[tuple[int, Trial]]:
    """Trials that will not get enough answers to end by themselves: (app id, trial)."""
    return [(app_id, _trial(row)) for app_id, *row in transaction.execute(_ENDED)]


def left_behind(transaction: Transaction) -> list[tuple[int, str]]:
    """Where 410s wait for a worker that is gone: (campaign, environment) of each."""
    return [(id, environment) for id, environment in transaction.execute(_LEFT_BEHIND)]


def stage(transaction: Transaction, campaign_id: int, hits: Sequence[Gone]) -> None:
    """Have the invalidation of these devices wait for the guard's verdict."""
    if not hits:
        return
    transaction.execute(
        _STAGE,
        {
            "campaign": campaign_id,
            "environments": [hit.environment for hit in hits],
            "ids": [hit.device_id for hit in hits],
            "tokens": [hit.token for hit in hits],
            "registered": [hit.registered_at for hit in hits],
            "gone": [hit.timestamp or hit.loaded_at for hit in hits],
            "reasons": [hit.reason for hit in hits],
            "apns_ids": [hit.apns_id for hit in hits],
        },
    )


def take_staged(transaction: Transaction, campaign_id: int, environment: str) -> list[Gone]:
    """Take the 410s that waited for the guard's verdict, to invalidate their devices in this transaction."""
    return [
        Gone(
            device_id=device_id,
            token=token,
            environment=environment,
            registered_at=registered_at,
            timestamp=gone_at,
            loaded_at=gone_at,
            reason=reason,
            apns_id=apns_id,
        )
        for device_id, token, environment, registered_at, gone_at, reason, apns_id in transaction.execute(
            _TAKE_STAGED, (campaign_id, environment)
        ).fetchall()
    ]


def apply_staged(transaction: Transaction, campaign_id: int, environment: str) -> None:
    """Invalidate the devices that waited for the guard's verdict."""
    devices.invalidate(transaction, take_staged(transaction, campaign_id, environment), campaign_id)


def _move(transaction: Transaction, campaign_id: int, environment: str, target: TrialState) -> bool:
    values = {
        "campaign": campaign_id,
        "environment": environment,
        "to": target.value,
        "from": [state.value for state in sources(TRIAL_MOVES, target)],
    }
    return transaction.execute(_MOVE, values).rowcount == 1


def _trial(row: Sequence[Any]) -> Trial:
    campaign_id, environment, state, accepted, bad_token, wrong_topic, gone, moved, probed, resumed = row
    counts = Counts(accepted=accepted, bad_token=bad_token, wrong_topic=wrong_topic, gone=gone, moved=moved)
    return Trial(
        campaign_id=campaign_id,
        environment=environment,
        state=TrialState(state),
        counts=counts,
        probed=probed,
        resumed=resumed,
    )
