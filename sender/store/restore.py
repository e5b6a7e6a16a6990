"""Undo: put devices back that a campaign, or a reason in a span of time, took out of use. Read from the changelog.

A change is undone when the device still stands as that change left it: its state is the row's, and it moved there at
the row's time. What registered again, or moved since for whatever reason, is left alone and counted with the cause.
Rows are looked at in steps, each its own transaction, so that a million of them hold no lock for long; a step that is
run again finds its devices moved on.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from sender.model import Actor
from sender.store.database import Transaction

#: Changelog rows looked at in one step.
STEP = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Whose changes are undone: a campaign's, or those with a reason from `since` until before `until`."""

    campaign_id: int | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    app_id: int | None = None

    def conditions(self, row: str) -> str:
        """The part of WHERE on a changelog row of that alias."""
        given = {
            "campaign_id": "{0}.campaign_id = %(campaign)s",
            "reason": "{0}.reason = %(reason)s",
            "since": "{0}.at >= %(since)s",
            "until": "{0}.at < %(until)s",
            "app_id": "{0}.app_id = %(app)s",
        }
        kinds = f"{row}.kind IN ('invalidated', 'quarantined')"
        return " AND ".join(
            [kinds, *(text.format(row) for name, text in given.items() if getattr(self, name) is not None)]
        )

    def params(self) -> dict[str, object]:
        """For the conditions."""
        return {
            "campaign": self.campaign_id,
            "reason": self.reason,
            "since": self.since,
            "until": self.until,
            "app": self.app_id,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How far a restore has come among the changelog's rows."""

    at: datetime = datetime(1, 1, 1, tzinfo=UTC)
    id: int = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one step did, in devices."""

    restored: dict[str, int] = field(default_factory=dict)  # by the state that they are in now
    skipped: dict[str, int] = field(default_factory=dict)  # by what happened to them since
    place: Place | None = None  # where the next step goes on; None: there is nothing more


#: `newest` has each device once, at the last of its rows in the scope; `judged` knows where it goes back to, and
#: whether it stands as that row left it. Of a quarantine and the invalidation that confirmed it, both in the scope,
#: both are undone; else it goes back into that quarantine, with its reason, its campaign and its time.
_JUDGED = """
WITH page AS MATERIALIZED (
    SELECT c.at, c.id, c.device_id, c.campaign_id, c.reason, c.old->>'state' AS old_state, c.new->>'state' AS new_state
    FROM {s}.changelog c
    WHERE <scope c> AND <after> AND c.id <= %(end)s AND c.device_id IS NOT NULL
    ORDER BY <order> LIMIT %(most)s
), newest AS MATERIALIZED (
    SELECT p.* FROM page p
    WHERE NOT EXISTS (
        SELECT FROM {s}.changelog n WHERE n.device_id = p.device_id AND n.id > p.id AND n.id <= %(end)s AND <scope n>)
), judged AS MATERIALIZED (
    SELECT n.*, d.id IS NULL AS forgotten, d.blocklisted_until,
           CASE WHEN n.old_state = 'quarantined' AND NOT coalesce(q.undone, false) THEN 'quarantined'
                WHEN d.blocklisted_until > now() THEN 'blocklisted' ELSE 'active' END AS back_to,
           q.at AS since, q.reason AS since_reason, q.campaign_id AS since_campaign_id,
           d.state = n.new_state AND d.state_changed_at = n.at AND coalesce(d.registered_at <= n.at, true) AS stands
    FROM newest n
    LEFT JOIN {s}.devices d ON d.id = n.device_id
    LEFT JOIN LATERAL (
        SELECT b.at, b.reason, b.campaign_id, <scope b> AS undone
        FROM {s}.changelog b
        WHERE n.old_state = 'quarantined' AND b.device_id = n.device_id AND b.id < n.id
          AND b.kind IN ('quarantined', 'imported') AND b.new->>'state' = 'quarantined'
        ORDER BY b.id DESC LIMIT 1
    ) q ON true
), moved_on AS (
    SELECT CASE WHEN j.forgotten THEN 'forgotten' ELSE coalesce(l.kind, 'registered') END AS cause
    FROM judged j
    LEFT JOIN LATERAL (
        SELECT c.kind FROM {s}.changelog c
        WHERE c.device_id = j.device_id AND c.id > j.id AND c.new ? 'state' ORDER BY c.id DESC LIMIT 1
    ) l ON true
    WHERE j.stands IS NOT TRUE
)
"""

_COUNTED = """
SELECT 'restored' AS what, state AS name, count(*) AS n FROM <changed> GROUP BY 2
UNION ALL SELECT 'skipped', cause, count(*) FROM moved_on GROUP BY 2
"""

_LOOK = _JUDGED + _COUNTED.replace("<changed>", "(SELECT back_to AS state FROM judged WHERE stands) AS j")

_RUN = (
    _JUDGED
    + """
, held AS MATERIALIZED (
    SELECT j.* FROM {s}.devices d JOIN judged j ON j.device_id = d.id
    WHERE j.stands AND d.state = j.new_state AND d.state_changed_at = j.at
    ORDER BY d.id FOR NO KEY UPDATE OF d
), changed AS (
    UPDATE {s}.devices d SET
        state = h.back_to, stale_410_campaign_id = NULL,
        state_reason = CASE h.back_to WHEN 'quarantined' THEN coalesce(h.since_reason, h.reason)
                                      WHEN 'blocklisted' THEN 'TooManyRequests' END,
        state_changed_at = CASE WHEN h.back_to = 'quarantined' THEN coalesce(h.since, now()) ELSE now() END,
        state_campaign_id = CASE WHEN h.back_to = 'quarantined' THEN h.since_campaign_id END
    FROM held h WHERE d.id = h.device_id
    RETURNING d.id, d.app_id, d.user_id, d.state, h.new_state, h.reason, h.campaign_id
), logged AS (
    INSERT INTO {s}.changelog (kind, actor, app_id, device_id, user_id, old, new, reason, campaign_id)
    SELECT 'restored', %(actor)s, app_id, id, user_id, jsonb_build_object('state', new_state),
           jsonb_build_object('state', state), reason, campaign_id
    FROM changed ORDER BY id
)
"""
    + _COUNTED.replace("<changed>", "changed")
)

_PAGE_END = """
SELECT at, id FROM (
    SELECT c.at, c.id FROM {s}.changelog c
    WHERE <scope c> AND <after> AND c.id <= %(end)s AND c.device_id IS NOT NULL
    ORDER BY <order> LIMIT %(most)s
) AS page ORDER BY <last> LIMIT 1
"""


def newest_row(transaction: Transaction) -> int:
    """The id of the newest changelog row there can be: a restore looks no further."""
    row = transaction.execute("SELECT last_value FROM {s}.changelog_id_seq").fetchone()
    return int(row[0]) if row else 0


def step(
    transaction: Transaction, scope: Scope, place: Place, *, end: int, actor: Actor, dry_run: bool, most: int = STEP
) -> Step:
    """Undo the next changes of a scope after `place`, up to the row `end`; with `dry_run` only count them."""
    values = {
        **scope.params(),
        "after_at": place.at,
        "after_id": place.id,
        "end": end,
        "most": most,
        "actor": actor.value,
    }
    last = transaction.execute(_written(_PAGE_END, scope), values).fetchone()
    if last is None:
        return Step()
    counts: dict[str, dict[str, int]] = {"restored": {}, "skipped": {}}
    for what, name, count in transaction.execute(_written(_LOOK if dry_run else _RUN, scope), values):
        counts[what][name] = count
    return Step(**counts, place=Place(at=last[0], id=last[1]))


def _written(statement: str, scope: Scope) -> str:
    """The statement for a scope. A campaign's rows are read in the order of its index, the others in that of time."""
    by_campaign = scope.campaign_id is not None
    parts = {
        "<after>": "c.id > %(after_id)s" if by_campaign else "(c.at, c.id) > (%(after_at)s, %(after_id)s)",
        "<order>": "c.id" if by_campaign else "c.at, c.id",
        "<last>": "id DESC" if by_campaign else "at DESC, id DESC",
        **{f"<scope {row}>": scope.conditions(row) for row in "cnb"},
    }
    for name, text in parts.items():
        statement = statement.replace(name, text)
    return statement
