"""Removing what is older than its retention: `sent` rows of the ledger's months, whole months, counts folded up.

A month of the ledger loses its `sent` rows by being replaced: a table beside it takes the rows that stay, a stretch of
its pages in each transaction, and then its place. Only that last step, and dropping a month, need a lock that the
inserts of running campaigns could wait for; they give it up after `SWAP_WITHIN` and are tried again.

Every function is one bounded step of its caller's transaction, safe to repeat, and run by one at a time (`alone`).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import date
from typing import cast

from sender.policy.states import Outcome
from sender.store.database import Transaction
from sender.store.partitions import LEDGER, Month, months

#: How long a step waits for its locks, and so the most that anybody waits for it.
SWAP_WITHIN = "200ms"

#: Noted on a month that has no `sent` rows any more but those of campaigns that somebody refers to.
SENT_REMOVED = "sent rows removed"

#: What a crash may take back is done again: no step waits for the disk.
_ALONE = """
SELECT pg_try_advisory_xact_lock(hashtext('retention'), hashtext(%s)), set_config('synchronous_commit', 'off', true)
"""

_UNFINISHED = """
SELECT key FROM {s}.campaigns
WHERE finished_at IS NULL AND started_on >= %(first)s AND started_on < %(after)s ORDER BY id LIMIT 1
"""

_REFERENCES = """
SELECT DISTINCT r.id, u.key, r.key
FROM {s}.campaigns u CROSS JOIN LATERAL jsonb_path_query(u.segment, '$.**.not_sent') AS named
JOIN {s}.campaigns r ON r.key = named #>> '{}'
WHERE u.finished_at IS NULL AND r.started_on >= %(first)s AND r.started_on < %(after)s
"""

#: Campaigns whose `sent` rows are there although nobody refers to them (any more).
_NOT_REMOVED = """
SELECT EXISTS (SELECT FROM {s}.campaigns WHERE started_on >= %(first)s AND started_on < %(after)s
               AND sent_removed_at IS NULL AND id <> ALL(%(kept)s))
"""

#: Against FOR KEY SHARE of whoever enqueues a campaign that refers to one of these: one of both comes first.
_HOLD = """
SELECT FROM {s}.campaigns
WHERE started_on >= %(first)s AND started_on < %(after)s AND sent_removed_at IS NULL ORDER BY id FOR UPDATE
"""

_MARK = """
UPDATE {s}.campaigns SET sent_removed_at = now()
WHERE started_on >= %(first)s AND started_on < %(after)s AND sent_removed_at IS NULL AND id <> ALL(%(kept)s)
"""

#: Whole months, as those that are dropped.
_DELETE_CHANGES = """
DELETE FROM {s}.changelog_default WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM {s}.changelog_default
    WHERE at < date_trunc('month', now() AT TIME ZONE 'UTC' - make_interval(days => %(days)s)) AT TIME ZONE 'UTC'
    LIMIT %(most)s))
"""

_PAGES = "SELECT pg_relation_size(%s::regclass) / current_setting('block_size')::bigint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The table that is to replace a month, and how far it is."""

    pages: int  # of the month that were looked at
    of: int  # pages that the month has
    kept: tuple[int, ...]  # campaigns whose `sent` rows stay

    @property
    def complete(self) -> bool:
        return self.pages >= self.of


def alone(transaction: Transaction) -> bool:
    """Whether nobody else is at a step of retention now; holds others off until the transaction ends."""
    row = transaction.execute(_ALONE, (transaction.schema,)).fetchone()
    return bool(row and row[0])


def today(transaction: Transaction) -> date:
    """Today in UTC by the database's clock: a host's own clock must not throw anything away."""
    [(day,)] = transaction.execute("SELECT (now() AT TIME ZONE 'UTC')::date").fetchall()
    return cast("date", day)


def unfinished(transaction: Transaction, month: Month) -> str | None:
    """The key of a campaign that started in a month and has not finished: the month stays as it is."""
    row = transaction.execute(_UNFINISHED, _span(month)).fetchone()
    return None if row is None else str(row[0])


def references(transaction: Transaction, month: Month) -> Mapping[int, tuple[str, str]]:
    """Campaigns of a month that an unfinished one leaves out the devices of: id -> (who refers, to whom)."""
    return {id: (who, whom) for id, who, whom in transaction.execute(_REFERENCES, _span(month)).fetchall()}


def is_there(transaction: Transaction, month: Month) -> bool:
    """Whether a month has not been dropped meanwhile."""
    return month.name in {each.name for each in months(transaction, month.parent)}


def needs_removal(transaction: Transaction, month: Month, kept: Collection[int]) -> bool:
    """Whether a month has `sent` rows of campaigns that are not among those kept."""
    row = transaction.execute(
        "SELECT obj_description(%s::regclass, 'pg_class')", (transaction.sql(f"{{s}}.{month.name}"),)
    ).fetchone()
    if row is None or row[0] != SENT_REMOVED:
        return _pages(transaction, month.name) > 0
    row = transaction.execute(_NOT_REMOVED, _span(month) | {"kept": list(kept)}).fetchone()
    return bool(row and row[0])


def copy_of(transaction: Transaction, month: Month) -> Copy | None:
    """The copy of a month that is under way, if there is one."""
    row = transaction.execute(
        "SELECT obj_description(to_regclass(%s), 'pg_class')", (transaction.sql(f"{{s}}.{_beside(month)}"),)
    ).fetchone()
    if row is None or row[0] is None:
        return None
    noted = json.loads(row[0])
    return Copy(pages=noted["pages"], of=_pages(transaction, month.name), kept=tuple(noted["kept"]))


def begin_copy(transaction: Transaction, month: Month, kept: Collection[int]) -> None:
    """Make the table that is to replace a month. Its check spares ATTACH from reading it."""
    transaction.wait_for_locks(SWAP_WITHIN)
    beside = _beside(month)
    transaction.execute(f"DROP TABLE IF EXISTS {{s}}.{beside}")
    transaction.execute(f"CREATE TABLE {{s}}.{beside} (LIKE {{s}}.{month.name} INCLUDING ALL)")
    transaction.execute(
        f"ALTER TABLE {{s}}.{beside} ADD CONSTRAINT {beside}_month "
        f"CHECK (campaign_started_on >= '{month.first}' AND campaign_started_on < '{month.after}')"
    )
    _note(transaction, month, 0, kept)


def copy_some(transaction: Transaction, month: Month, copy: Copy, *, pages: int) -> None:
    """Copy what stays of the next pages of a month."""
    upto = min(copy.pages + pages, copy.of)
    transaction.execute(
        f"INSERT INTO {{s}}.{_beside(month)} SELECT * FROM {{s}}.{month.name} "
        "WHERE ctid >= %(low)s::tid AND ctid < %(high)s::tid AND (outcome <> %(sent)s OR campaign_id = ANY(%(kept)s)) "
        "ON CONFLICT DO NOTHING",
        {
            "low": f"({copy.pages},0)",
            "high": f"({upto},0)",
            "sent": Outcome.SENT.value,
            "kept": list(copy.kept),
        },
    )
    _note(transaction, month, upto, copy.kept)
    if upto >= copy.of:
        transaction.execute(f"ANALYZE {{s}}.{_beside(month)}")


def swap(transaction: Transaction, month: Month, copy: Copy) -> bool:
    """Put the copy in the month's place, and say so on its campaigns. False when a campaign was enqueued meanwhile
    that needs rows which the copy does not have: it is to be begun anew."""
    transaction.wait_for_locks(SWAP_WITHIN)
    transaction.execute(_HOLD, _span(month))
    if not set(references(transaction, month)) <= set(copy.kept):
        transaction.execute(f"DROP TABLE {{s}}.{_beside(month)}")
        return False
    transaction.execute(_MARK, _span(month) | {"kept": list(copy.kept)})
    beside = _beside(month)
    bounds = f"FROM ('{month.first}') TO ('{month.after}')"
    for statement in (
        f"ALTER TABLE {{s}}.{LEDGER} DETACH PARTITION {{s}}.{month.name}",
        f"DROP TABLE {{s}}.{month.name}",
        f"ALTER TABLE {{s}}.{beside} RENAME TO {month.name}",
        f"ALTER TABLE {{s}}.{LEDGER} ATTACH PARTITION {{s}}.{month.name} FOR VALUES {bounds}",
        f"ALTER TABLE {{s}}.{month.name} DROP CONSTRAINT {beside}_month",
        f"COMMENT ON TABLE {{s}}.{month.name} IS '{SENT_REMOVED}'",
    ):
        transaction.execute(statement)
    return True


def drop(transaction: Transaction, month: Month) -> bool:
    """Drop a month. False when it is gone already, or a campaign was enqueued meanwhile that needs its rows."""
    transaction.wait_for_locks(SWAP_WITHIN)
    if not is_there(transaction, month):
        return False
    if month.parent == LEDGER:
        transaction.execute(_HOLD, _span(month))
        if references(transaction, month):
            return False
        transaction.execute(_MARK, _span(month) | {"kept": []})
        transaction.execute(f"DROP TABLE IF EXISTS {{s}}.{_beside(month)}")
    transaction.execute(f"DROP TABLE {{s}}.{month.name}")
    return True


def delete_changes(transaction: Transaction, days: int, *, most: int) -> int:
    """Delete changes of months that were never made a partition of; returns how many."""
    return transaction.execute(_DELETE_CHANGES, {"days": days, "most": most}).rowcount


def _beside(month: Month) -> str:
    return f"{month.name}_kept"


def _span(month: Month) -> dict[str, object]:
    return {"first": month.first, "after": month.after}


def _pages(transaction: Transaction, name: str) -> int:
    row = transaction.execute(_PAGES, (transaction.sql(f"{{s}}.{name}"),)).fetchone()
    return int(row[0]) if row else 0


def _note(transaction: Transaction, month: Month, pages: int, kept: Collection[int]) -> None:
    text = json.dumps({"pages": pages, "kept": sorted(kept)})  # numbers alone: nothing to be quoted
    transaction.execute(f"COMMENT ON TABLE {{s}}.{_beside(month)} IS '{text}'")
