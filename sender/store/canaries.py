"""Canaries: which devices are the sample, how far it has come, and the moves of a canary, each a compare-and-set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from sender.audience import Segment
from sender.audience.canary import Canary
from sender.model import PushType
from sender.policy.canary import Sample
from sender.policy.states import CANARY_MOVES, CampaignState, CanaryState, Outcome, sources
from sender.store.database import Transaction
from sender.store.segments import LOTS, compile_segment, lot, reachable

#: Samples of at most this many devices are drawn exactly; larger ones by their share, which is as near as a per cent.
EXACT = 10_000

#: Seconds from now within which a retry must be due for the sample to be waited for.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCanary:
    """A campaign whose canary has not passed."""

    id: int
    key: str
    state: CampaignState
    canary: Canary
    canary_state: CanaryState
    whole: bool  # the sample is the whole audience
    cut_finished: bool  # the sample's cut is at its end
    cut_devices: int
    started_on: date
    low_batch_id: int
    tripped: bool  # by the guard


_PLAN = "SELECT key, app_id, segment, push_type, canary, now() AS now FROM {s}.campaigns WHERE id = %s"

_OPEN = """
SELECT c.id, c.key, c.state, c.canary, c.canary_state, c.cut_finished, c.cut_devices, c.started_on, c.low_batch_id,
       EXISTS (SELECT FROM {s}.trials t WHERE t.campaign_id = c.id AND t.state = 'tripped') AS tripped
FROM {s}.campaigns c
WHERE c.finished_at IS NULL AND c.state IN ('running', 'paused')
  AND c.canary_state IN ('sending', 'waiting', 'stopped')
ORDER BY c.id
"""

#: Retries that are in a batch are seen by the batch.
_BUSY = """
SELECT EXISTS (
    SELECT FROM {s}.batches WHERE campaign_id = %(campaign)s AND id > %(low)s AND state <> 'done'
) OR EXISTS (
    SELECT FROM {s}.retries
    WHERE campaign_id = %(campaign)s AND batch_id IS NULL AND due_at <= now() + make_interval(secs => %(patience)s)
)
"""

#: `sent` from the batches, the others by the index of deliveries that were not sent.
_FIGURES = """
SELECT 'sent' AS outcome, NULL AS reason, coalesce(sum(sent), 0)::bigint AS n
FROM {s}.batches WHERE campaign_id = %(campaign)s
UNION ALL
SELECT outcome, reason, count(*) FROM {s}.deliveries
WHERE campaign_started_on = %(day)s AND campaign_id = %(campaign)s AND outcome <> 'sent' GROUP BY outcome, reason
UNION ALL
SELECT 'waiting', reason, count(*) FROM {s}.retries WHERE campaign_id = %(campaign)s GROUP BY reason
"""

_MOVE = """
UPDATE {s}.campaigns
SET canary_state = %(to)s, canary = canary || %(facts)s::jsonb,
    state = CASE WHEN %(pauses)s THEN 'paused' ELSE state END,
    state_reason = CASE WHEN %(pauses)s THEN %(reason)s ELSE state_reason END,
    state_actor = CASE WHEN %(pauses)s THEN 'system' ELSE state_actor END,
    epoch = epoch + CASE WHEN %(pauses)s THEN 1 ELSE 0 END,
    cut_cursor = CASE WHEN %(passes)s THEN 0 ELSE cut_cursor END,
    cut_finished = cut_finished AND NOT %(passes)s,
    fanout_until = CASE WHEN %(passes)s THEN NULL ELSE fanout_until END
WHERE id = (SELECT id FROM {s}.campaigns WHERE id = %(id)s FOR NO KEY UPDATE SKIP LOCKED) -- the next sweep tries again
  AND canary_state = ANY(%(from)s) AND state = %(state)s AND cut_finished = %(cut_finished)s
RETURNING id
"""

#: Outcomes that say something of the message, the token or the configuration; a device that was removed does not.
_ANSWERED = frozenset({Outcome.SENT, Outcome.REJECTED, Outcome.UNKNOWN, Outcome.FAILED})


def draw(transaction: Transaction, campaign_id: int, audience: int) -> str | None:
    """Fix the sample of a campaign that starts, as its canary's JSON with the lot below which a device belongs to it.

    None when the campaign has no canary, or nobody to try it on.
    """
    (row,) = transaction.rows(_PLAN, (campaign_id,))
    if row["canary"] is None or not audience:
        return None
    wanted = Canary.from_json(row["canary"]).wanted(audience)
    if wanted >= audience:
        below = LOTS
    elif wanted > EXACT:
        below = int(wanted / audience * LOTS)
    else:
        below = _exactly(transaction, row, wanted)
    return json.dumps({**row["canary"], "below": below})


def _exactly(transaction: Transaction, row: Mapping[str, Any], wanted: int) -> int:
    """The lot below which so many devices of an audience are."""
    number = lot(seed(row["key"])).label("number")
    push_type = PushType(row["push_type"])
    drawn = (
        sa.select(number)
        .where(
            compile_segment(Segment.from_json(row["segment"]), row["app_id"], row["now"]),
            reachable(push_type, row["app_id"]),
        )
        .order_by(number)
        .limit(wanted)
        .subquery()
    )
    (highest,) = transaction.execute(sa.select(sa.func.max(drawn.c.number))).fetchone() or (None,)
    return LOTS if highest is None else int(highest) + 1


def seed(key: str) -> str:
    """What the lots of a campaign's canary are drawn with: the same devices whenever it is drawn again."""
    return f"canary:{key}"


def part(key: str, canary: Mapping[str, Any] | None, state: str | None) -> list[sa.ColumnElement[bool]]:
    """The condition of what is cut now: the sample until the canary has passed, then everything else."""
    if canary is None or "below" not in canary:  # nobody was there to be drawn
        return []
    number, below = lot(seed(key)), sa.literal(canary["below"], sa.BigInteger)
    return [number >= below if state == CanaryState.PASSED else number < below]


def open_canaries(transaction: Transaction) -> list[OpenCanary]:
    """Campaigns whose canary has not passed, and that have not ended."""
    return [_open(row) for row in transaction.rows(_OPEN)]


def _open(row: dict[str, Any]) -> OpenCanary:
    canary = row["canary"]
    kinds = {"state": CampaignState(row["state"]), "canary_state": CanaryState(row["canary_state"])}
    return OpenCanary(**{**row, **kinds, "canary": Canary.from_json(canary), "whole": canary.get("below") == LOTS})


def is_busy(transaction: Transaction, canary: OpenCanary, *, patience: float = PATIENCE) -> bool:
    """Whether some of the sample is in a batch that is not done, or due again within `patience` seconds."""
    values = {"campaign": canary.id, "low": canary.low_batch_id, "patience": patience}
    row = transaction.execute(_BUSY, values).fetchone()
    return bool(row and row[0])


def sample(transaction: Transaction, canary: OpenCanary) -> Sample:
    """How far the sample has come."""
    final = answered = 0
    reasons: dict[str, int] = {}
    waiting: dict[str, int] = {}
    for outcome, reason, count in transaction.execute(_FIGURES, {"campaign": canary.id, "day": canary.started_on}):
        if outcome == "waiting":
            waiting[reason] = count
            continue
        final += count
        if outcome in _ANSWERED:
            answered += count
            if outcome != Outcome.SENT:
                name = reason or outcome
                reasons[name] = reasons.get(name, 0) + count
    return Sample(size=canary.cut_devices, final=final, answered=answered, reasons=reasons, waiting=waiting)


def let_pass(transaction: Transaction, canary: OpenCanary, result: str | None = None) -> bool:
    """Have the rest of the audience cut. `result`: the figures, in words, when the sample has just been weighed."""
    return _move(transaction, canary, CanaryState.PASSED, result=result, passes=True)


def wait(transaction: Transaction, canary: OpenCanary, result: str) -> bool:
    """Pause the campaign until a person resumes it: the sample's results are good."""
    return _move(transaction, canary, CanaryState.WAITING, result=result, reason=f"canary: {result}; held as asked for")


def stop(transaction: Transaction, canary: OpenCanary, result: str) -> bool:
    """Pause the campaign: the sample's results are over a threshold."""
    return _move(transaction, canary, CanaryState.STOPPED, result=result, reason=f"canary: {result}")


def note_guard(transaction: Transaction, canary: OpenCanary) -> bool:
    """The guard has paused the campaign during its canary, with its own reason."""
    return _move(transaction, canary, CanaryState.STOPPED, result="the guard paused the campaign")


def _move(
    transaction: Transaction,
    canary: OpenCanary,
    target: CanaryState,
    *,
    result: str | None,
    reason: str | None = None,
    passes: bool = False,
) -> bool:
    facts: dict[str, Any] = {} if result is None else {"result": result}
    if canary.cut_finished:
        facts["size"] = canary.cut_devices
    values = {
        "id": canary.id,
        "to": target.value,
        "from": [state.value for state in sources(CANARY_MOVES, target) if state is canary.canary_state],
        "state": canary.state.value,
        "cut_finished": canary.cut_finished,
        "facts": json.dumps(facts),
        "pauses": reason is not None,
        "reason": reason,
        "passes": passes,
    }
    return transaction.execute(_MOVE, values).fetchone() is not None
