"""The moves of a campaign that the system makes: start, miss, complete, fail, pause. Each is a compare-and-set: zero
rows changed is a normal answer. (What people ask for is in `store.campaigns`.)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from sender.audience import Segment
from sender.model import PushType
from sender.policy.states import CAMPAIGN_MOVES, CampaignState, sources
from sender.store.database import Transaction
from sender.store.segments import AudienceCount, count_audience


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A scheduled campaign whose time has come."""

    id: int
    key: str
    late: bool  # later than its grace allows
    today: date  # in UTC, by the database's clock


_DUE = """
SELECT id, key, coalesce(send_at, created_at) + make_interval(secs => grace) < now() AND send_at IS NOT NULL AS late,
       (now() AT TIME ZONE 'UTC')::date AS today
FROM {s}.campaigns c
WHERE state = 'scheduled' AND (send_at IS NULL OR send_at <= now())
  AND NOT EXISTS ( -- whom it leaves out is known when what they are left out for has its last answers
      SELECT FROM {s}.campaigns x
      WHERE x.finished_at IS NULL AND x.started_at IS NOT NULL AND x.state IN ('cancelled', 'failed')
        AND jsonb_path_exists(c.segment, '$.**.not_sent ? (@ == $key)', jsonb_build_object('key', x.key)))
ORDER BY send_at NULLS FIRST, id LIMIT 100
"""

#: Not the campaign's row, which people would wait for: they may cancel meanwhile.
_STARTS_ALONE = "SELECT pg_try_advisory_xact_lock(hashtextextended('start ' || %s, %s))"

_AUDIENCE = "SELECT app_id, segment, push_type, now() AS now FROM {s}.campaigns WHERE id = %s"

_START = """
UPDATE {s}.campaigns
SET state = 'running', state_reason = NULL, state_actor = 'system', epoch = epoch + 1, started_at = now(),
    started_on = (now() AT TIME ZONE 'UTC')::date,
    expiration = CASE WHEN expires_in > 0 THEN date_trunc('second', now()) + make_interval(secs => expires_in) END,
    low_batch_id = (SELECT coalesce(max(id), 0) FROM {s}.batches),
    cut_limit = (SELECT coalesce(max(id), 0) FROM {s}.devices),
    audience_estimate = %(estimate)s, exclusions = %(exclusions)s::jsonb,
    rate = CASE WHEN over > 0 THEN greatest(%(estimate)s / over, 0.001) ELSE rate END,
    canary = coalesce(%(canary)s::jsonb, canary),
    canary_state = CASE WHEN %(canary)s::jsonb IS NOT NULL THEN 'sending' WHEN canary IS NOT NULL THEN 'passed' END
WHERE id = %(id)s AND state = ANY(%(from)s) AND (now() AT TIME ZONE 'UTC')::date = %(today)s
RETURNING id
"""

_MOVE = """
UPDATE {s}.campaigns
SET state = %(to)s, state_reason = %(reason)s, state_actor = 'system', epoch = epoch + 1
WHERE id = %(id)s AND state = ANY(%(from)s)
RETURNING id
"""

#: What is added to a pause is the system's word: whoever resumes it must have seen it.
_ADD_REASON = """
UPDATE {s}.campaigns
SET state_reason = concat_ws('. ', rtrim(state_reason, '. '), %(reason)s::text), state_actor = 'system'
WHERE id = %(id)s AND state = 'paused'
"""

#: Looked up a campaign at a time, by an index, as the limits and the order make PostgreSQL do: anything else would read
#: all that wait for a retry, of all campaigns.
_SETTLE = """
UPDATE {s}.campaigns c SET state = CASE WHEN c.state = 'running' THEN 'completed' ELSE c.state END,
    state_reason = CASE WHEN c.state = 'running' THEN NULL ELSE c.state_reason END,
    epoch = epoch + 1, finished_at = now(), cut_finished = true
WHERE c.finished_at IS NULL
  AND (c.state = 'running' AND c.cut_finished AND coalesce(c.canary_state, 'passed') = 'passed'
       OR c.state IN ('cancelled', 'failed', 'missed'))
  AND (SELECT true FROM {s}.batches b
       WHERE b.campaign_id = c.id AND b.id > c.low_batch_id AND b.state <> 'done' ORDER BY b.id LIMIT 1) IS NULL
  AND (SELECT true FROM {s}.retries r WHERE r.campaign_id = c.id ORDER BY r.device_id LIMIT 1) IS NULL
  AND (SELECT true FROM {s}.trials t
       WHERE t.campaign_id = c.id AND t.state = 'trial' LIMIT 1) IS NULL -- its 410s wait for it
RETURNING c.id, c.key, c.state
"""

#: In the order of their ids, as everybody who holds more than one; what somebody else holds is found by the next tick.
_FANOUT_WANTED = """
WITH wanted AS MATERIALIZED (
    SELECT c.id FROM {s}.campaigns c JOIN {s}.apps a ON a.id = c.app_id
    WHERE a.state = 'active' AND c.state = 'running'
      AND (c.fanout_until IS NULL OR c.fanout_until < now()
           OR c.fanout_until > now() + make_interval(secs => 2 * %(seconds)s))  -- the clock was set back
      AND (NOT c.cut_finished OR EXISTS (
          SELECT FROM {s}.batches b WHERE b.campaign_id = c.id AND b.id > c.low_batch_id AND b.state = 'open'
                                      AND b.published_at IS NULL AND (b.due_at IS NULL OR b.due_at <= now())))
    ORDER BY c.id FOR NO KEY UPDATE OF c SKIP LOCKED
)
UPDATE {s}.campaigns c SET fanout_until = now() + make_interval(secs => %(seconds)s)
FROM wanted WHERE c.id = wanted.id
RETURNING c.id, c.key
"""


def due(transaction: Transaction) -> list[Due]:
    """Scheduled campaigns whose time has come."""
    return [Due(**row) for row in transaction.rows(_DUE)]


def starts_alone(transaction: Transaction, campaign_id: int) -> bool:
    """Whether nobody else is starting this campaign now, until the transaction ends: its audience may take longer to
    count than it is to the next tick."""
    row = transaction.execute(_STARTS_ALONE, (transaction.schema, campaign_id)).fetchone()
    return bool(row and row[0])


def audience_of(transaction: Transaction, campaign_id: int) -> AudienceCount:
    """Count whom a campaign would reach now, and whom not for which cause."""
    (row,) = transaction.rows(_AUDIENCE, (campaign_id,))
    return count_audience(
        transaction, row["app_id"], Segment.from_json(row["segment"]), PushType(row["push_type"]), row["now"]
    )


def segment_of(transaction: Transaction, campaign_id: int) -> Segment:
    """Whom a campaign is meant for."""
    (row,) = transaction.rows("SELECT segment FROM {s}.campaigns WHERE id = %s", (campaign_id,))
    return Segment.from_json(row["segment"])


def start(
    transaction: Transaction, campaign: Due, *, estimate: int, exclusions: str, canary: str | None = None
) -> bool:
    """Start a campaign: fixes its expiration, its place in the ledger, which devices it may reach, and its sample.

    False when somebody else did, or when midnight (UTC) has passed since `due`: the next tick finds it again.
    """
    return (
        transaction.execute(
            _START,
            {
                "id": campaign.id,
                "today": campaign.today,
                "from": [CampaignState.SCHEDULED.value],  # not paused: resuming is not starting
                "estimate": estimate,
                "exclusions": exclusions,
                "canary": canary,
            },
        ).fetchone()
        is not None
    )


def miss(transaction: Transaction, campaign_id: int, reason: str) -> bool:
    """End a campaign whose start is later than its grace."""
    return _move(transaction, campaign_id, CampaignState.MISSED, reason)


def fail(transaction: Transaction, campaign_id: int, reason: str) -> bool:
    """End a campaign whose message is wrong."""
    return _move(transaction, campaign_id, CampaignState.FAILED, reason)


def pause(transaction: Transaction, campaign_id: int, reason: str) -> bool:
    """Pause a running campaign until a person resumes it. One that is paused already, by a person or for another
    reason, is told why it should stay so as well. False when it was not running."""
    if _move(transaction, campaign_id, CampaignState.PAUSED, reason):
        return True
    transaction.execute(_ADD_REASON, {"id": campaign_id, "reason": reason})
    return False


def settle(transaction: Transaction) -> list[tuple[int, str, str]]:
    """Finish the campaigns of which nothing is open any more: (id, key, state) of each."""
    return [(id, key, state) for id, key, state in transaction.execute(_SETTLE)]


def is_finished(transaction: Transaction, campaign_id: int) -> bool:
    """Whether a campaign has come to its end, or is gone altogether."""
    row = transaction.execute("SELECT finished_at FROM {s}.campaigns WHERE id = %s", (campaign_id,)).fetchone()
    return row is None or row[0] is not None


def take_fanout(transaction: Transaction, *, seconds: float) -> list[tuple[int, str]]:
    """Campaigns that have something to be cut or published and that nobody is at, now reserved for `seconds`: (id, key)
    of each."""
    return [(id, key) for id, key in transaction.execute(_FANOUT_WANTED, {"seconds": seconds})]


def _move(transaction: Transaction, campaign_id: int, target: CampaignState, reason: str) -> bool:
    return (
        transaction.execute(
            _MOVE, {"id": campaign_id, "to": target.value, "reason": reason, "from": list(_from(target))}
        ).fetchone()
        is not None
    )


def _from(target: CampaignState) -> set[str]:
    return {state.value for state in sources(CAMPAIGN_MOVES, target)}
