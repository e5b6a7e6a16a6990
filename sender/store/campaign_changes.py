"""Changes of a campaign that has not ended: its pace and its deadlines. One statement, which moves its epoch."""

from __future__ import annotations

from datetime import datetime

from sender.policy.states import CAMPAIGN_MOVES
from sender.store.database import Transaction

_CHANGE = """
UPDATE {s}.campaigns
SET epoch = epoch + 1, paced_at = CASE WHEN %(set_rate)s THEN now() ELSE paced_at END,
    rate = CASE WHEN NOT %(set_rate)s THEN rate
                WHEN %(over)s::float8 IS NULL THEN %(rate)s::float8
                WHEN started_at IS NULL THEN NULL -- its start makes a rate of it
                ELSE greatest(coalesce(%(left)s::float8, audience_estimate) / %(over)s::float8, 0.001) END,
    over = CASE WHEN %(set_rate)s THEN %(over)s::float8 ELSE over END,
    finish_by = CASE WHEN %(set_finish_by)s THEN %(finish_by)s::timestamptz ELSE finish_by END,
    expires_in = coalesce(%(expires_in)s::float8, expires_in),
    expiration = CASE WHEN started_at IS NULL OR %(expires_in)s::float8 IS NULL THEN expiration
                      ELSE date_trunc('second', started_at) + make_interval(secs => %(expires_in)s::float8) END
WHERE key = %(key)s AND state = ANY(%(open)s) AND finished_at IS NULL
  AND (%(expires_in)s::float8 IS NULL OR started_at IS NULL
       OR date_trunc('second', started_at) + make_interval(secs => %(expires_in)s::float8) >= expiration)
RETURNING id
"""


def change(
    transaction: Transaction,
    key: str,
    *,
    rate: tuple[float | None] | tuple[()],
    over: float | None,
    left: int | None,
    finish_by: tuple[datetime | None] | tuple[()],
    expires_in: float | None,
) -> bool:
    """Change what is given (an empty tuple: not given). `over` goes in the place of a rate: what is `left` is spread
    over it (None: it had not started when somebody looked, so that all of it is left, should it have started since).

    False when the campaign has ended, is unknown, or has started and would expire earlier.
    """
    values = {
        "key": key,
        "open": [state.value for state, targets in CAMPAIGN_MOVES.items() if targets],
        "set_rate": bool(rate) or over is not None,
        "rate": rate[0] if rate else None,
        "over": over,
        "left": left,
        "set_finish_by": bool(finish_by),
        "finish_by": finish_by[0] if finish_by else None,
        "expires_in": expires_in,
    }
    return transaction.execute(_CHANGE, values).fetchone() is not None
