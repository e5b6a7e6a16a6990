"""Erasing a person: their devices, their id, and whatever names them elsewhere. Surrogate ids stay, so that figures
and the changelog still add up; they lead nowhere any more.

Devices are locked before the user, as registering does it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import psycopg

from sender.model import Actor, ChangeKind
from sender.policy.forgetting import is_only_for, with_key, without_user
from sender.store import changelog
from sender.store.changelog import NewChange
from sender.store.database import Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgotten:
    """What was erased of a person, in rows."""

    known: bool  # whether there was a user of that id
    devices: int
    campaigns: int  # whose audience named the user
    messages: int  # of these, for nobody else: their payload and content went as well
    changes: int  # of the changelog, out of which texts were taken
    staged: int  # of imports that are under way or died, and of answers that wait for the guard

    @property
    def anything(self) -> bool:
        """Whether there was anything to erase."""
        return self.known or bool(self.devices or self.campaigns or self.changes or self.staged)


_HOLD_DEVICES = """
SELECT d.id FROM {s}.devices d JOIN {s}.users u ON u.id = d.user_id
WHERE u.external_id = %s ORDER BY d.id FOR UPDATE OF d
"""

_FORGET_USER = "UPDATE {s}.users SET external_id = NULL WHERE external_id = %s RETURNING id"

_DELETE_DEVICES = "DELETE FROM {s}.devices WHERE user_id = %s RETURNING id, token"

#: Beginnings of tokens, and what the app said when it could not get one.
_CLEAN_CHANGES = """
UPDATE {s}.changelog SET old = old - 'token', new = new - 'token',
    reason = CASE WHEN kind = 'registration_failed' THEN NULL ELSE reason END
WHERE <which> AND (old ? 'token' OR new ? 'token' OR kind = 'registration_failed' AND reason IS NOT NULL)
"""

_STAGED = "DELETE FROM {s}.staged WHERE device_id = ANY(%s::bigint[]) OR token = ANY(%s::text[])"

_IMPORTS = """
SELECT c.relname, array_agg(a.attname::text)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
WHERE n.nspname = %s AND c.relkind = 'r' AND c.relname ~ '^import_[0-9]{9,11}_[0-9a-f]{8}'
GROUP BY c.relname
"""

_NAMING = """
SELECT id, key, content, segment FROM {s}.campaigns
WHERE jsonb_path_exists(segment, '$.**.user[*] ? (@ == $user)', jsonb_build_object('user', %(user)s::text))
   OR jsonb_path_exists(content, '$.audience.**.user[*] ? (@ == $user)', jsonb_build_object('user', %(user)s::text))
ORDER BY id FOR NO KEY UPDATE
"""

_REWRITE = "UPDATE {s}.campaigns SET content = %s::jsonb, segment = %s::jsonb WHERE id = %s"

_EMPTY = """
UPDATE {s}.campaigns SET payload = '{}', collapse_id = NULL,
    content = jsonb_build_object('app', content->'app', 'audience', content->'audience', 'forgotten', true)
WHERE id = %s
"""

_REFERRING = """
SELECT id, content, segment FROM {s}.campaigns
WHERE jsonb_path_exists(segment, '$.**.not_sent ? (@ == $key)', jsonb_build_object('key', %s::text))
ORDER BY id FOR NO KEY UPDATE
"""


def forget(transaction: Transaction, external_id: str, *, actor: Actor, dry_run: bool) -> Forgotten:
    """Erase a person by the application's own id; leaves one audit row without personal data. Safe to repeat.

    With `dry_run` the transaction is rolled back: what it did is what it would do.
    """
    transaction.execute(_HOLD_DEVICES, (external_id,))
    row = transaction.execute(_FORGET_USER, (external_id,)).fetchone()
    user_id = None if row is None else int(row[0])
    gone = [] if user_id is None else transaction.execute(_DELETE_DEVICES, (user_id,)).fetchall()
    ids, tokens = [id for id, _ in gone], [token for _, token in gone]
    campaigns, messages = _forget_in_campaigns(transaction, external_id)
    done = Forgotten(
        known=user_id is not None,
        devices=len(gone),
        campaigns=campaigns,
        messages=messages,
        changes=_clean_changelog(transaction, user_id, ids),
        staged=transaction.execute(_STAGED, (ids, tokens)).rowcount
        + _forget_in_imports(transaction, external_id, user_id, tokens),
    )
    if done.anything:
        _audit(transaction, user_id, done, actor)
    if dry_run:
        transaction.connection.rollback()
    return done


def _audit(transaction: Transaction, user_id: int | None, done: Forgotten, actor: Actor) -> None:
    row = NewChange(
        kind=ChangeKind.FORGOTTEN,
        actor=actor,
        app_id=None,
        user_id=user_id,
        new={"devices": done.devices, "campaigns": done.campaigns},
    )
    changelog.append(transaction, [row])


def _clean_changelog(transaction: Transaction, user_id: int | None, ids: list[int]) -> int:
    changed = 0
    for which, values in (("device_id = ANY(%s::bigint[])", ids), ("user_id = %s", user_id)):
        if values:
            changed += transaction.execute(_CLEAN_CHANGES.replace("<which>", which), (values,)).rowcount
    return changed


def _forget_in_imports(transaction: Transaction, external_id: str, user_id: int | None, tokens: list[str]) -> int:
    """Rows of staging tables: what a running import has not merged yet, and what one that died left behind."""
    removed = 0
    conditions = {
        "external_user": "external_user = %(user)s",
        "user_id": "user_id = %(user_id)s",
        "token": "token = ANY(%(tokens)s::text[])",
    }
    values = {"user": external_id, "user_id": user_id, "tokens": tokens}
    for table, columns in transaction.execute(_IMPORTS, (transaction.schema,)).fetchall():
        which = " OR ".join(text for column, text in conditions.items() if column in columns)
        try:
            with transaction.connection.transaction():  # a savepoint: the import may end, and drop its tables, just now
                removed += transaction.execute(f"DELETE FROM {{s}}.{table} WHERE {which}", values).rowcount
        except psycopg.errors.UndefinedTable:
            continue
    return removed


def _forget_in_campaigns(transaction: Transaction, external_id: str) -> tuple[int, int]:
    """Take the user out of audiences; a message that was for nobody else goes whole. Returns (campaigns, messages)."""
    found = transaction.rows(_NAMING, {"user": external_id})
    theirs = [row for row in found if is_only_for(row["segment"], external_id)]
    for row in found:
        segment = without_user(row["segment"], external_id)
        content = {**row["content"], "audience": without_user(row["content"].get("audience"), external_id)}
        transaction.execute(_REWRITE, (json.dumps(content), json.dumps(segment), row["id"]))
    for row in theirs:
        transaction.execute(_EMPTY, (row["id"],))
        if external_id in row["key"]:
            _rename(transaction, row["id"], row["key"])
    return len(found), len(theirs)


def _rename(transaction: Transaction, campaign_id: int, key: str) -> None:
    """Give a campaign a key that says nothing; audiences that leave out whom it was sent to follow."""
    new = f"forgotten-{campaign_id}"
    transaction.execute("UPDATE {s}.campaigns SET key = %s WHERE id = %s", (new, campaign_id))
    for other, *documents in transaction.execute(_REFERRING, (key,)).fetchall():
        rewritten = [json.dumps(with_key(document, key, new)) for document in documents]
        transaction.execute(_REWRITE, (*rewritten, other))
