"""What the database knows around a trip of the guard, for its diagnosis."""

from __future__ import annotations

from collections.abc import Sequence

from sender.model import CredentialKind, Environment
from sender.policy.diagnosis import Evidence
from sender.policy.guard import Counts
from sender.store import baselines, trials
from sender.store.batches import CampaignWork
from sender.store.database import Transaction

#: Refused devices of which it is looked up whether they came out of a file.
SAMPLE = 200

#: Seconds by which answers are learned later than they came, at the most: those of a campaign that goes on, later.
LEARNED_WITHIN = 330.0

_CREDENTIALS = """
SELECT c.environment, c.kind,
       b.accepted > 0 AND c.created_at > a.created_at
       AND (c.created_at > b.updated_at - make_interval(secs => %(late)s)
            OR c.created_at > (SELECT started_at FROM {s}.campaigns WHERE id = %(campaign)s)) AS replaced
FROM {s}.credentials c JOIN {s}.apps a ON a.id = c.app_id
LEFT JOIN {s}.baselines b ON b.app_id = c.app_id AND b.environment = c.environment
WHERE c.app_id = %(app)s
"""

#: A device's first changelog row says where it came from.
_IMPORTED = """
SELECT count(*) FILTER (WHERE first.kind = 'imported')::float8 / greatest(count(*), 1)
FROM unnest(%s::bigint[]) AS i(id)
CROSS JOIN LATERAL (
    SELECT l.kind FROM {s}.changelog l
    WHERE l.device_id = i.id AND l.kind IN ('imported', 'registered', 'rotated', 'revived', 'environment_changed')
    ORDER BY l.id DESC LIMIT 1
) AS first
"""


def gather(transaction: Transaction, campaign: CampaignWork, environment: str, refused: Sequence[int]) -> Evidence:
    """The evidence on a campaign in an environment; `refused`: ids of devices whose tokens were refused there."""
    where = {"app": campaign.app_id, "campaign": campaign.id, "late": LEARNED_WITHIN}
    credentials = {row["environment"]: row for row in transaction.rows(_CREDENTIALS, where)}
    usual = baselines.load(transaction, campaign.app_id)
    here = Environment(environment)
    there = next(each for each in Environment if each is not here)
    mine = credentials.get(environment)
    other = trials.of(transaction, campaign.id).get(there.value)
    imported = transaction.execute(_IMPORTED, (list(refused[:SAMPLE]),)).fetchone()
    return Evidence(
        campaign=campaign.key,
        bundle_id=campaign.bundle_id,
        environment=here,
        credential=None if mine is None else CredentialKind(mine["kind"]),
        both=len(credentials) == len(Environment),
        healing=campaign.healing,
        worked=usual.get(environment, Counts()).accepted > 0,
        replaced=bool(mine and mine["replaced"]),
        other=Counts() if other is None else other.counts,
        other_worked=usual.get(there.value, Counts()).accepted > 0,
        imported=float(imported[0]) if imported else 0.0,
    )
