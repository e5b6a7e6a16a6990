"""What is usual for an app in an environment: counts of answers that fade, so that old ones weigh less."""

from __future__ import annotations

from collections.abc import Mapping

from sender.model import Environment
from sender.policy.guard import Counts
from sender.store.database import Transaction

#: Days after which an answer weighs half.
HALF_LIFE = 30.0

_FADED = "power(0.5, extract(epoch FROM now() - b.updated_at) / 86400 / %(half_life)s)"

_ADD = f"""
INSERT INTO {{s}}.baselines AS b (app_id, environment, judged, accepted, bad_token, wrong_topic, gone)
SELECT id, %(environment)s, %(judged)s, %(accepted)s, %(bad_token)s, %(wrong_topic)s, %(gone)s
FROM {{s}}.apps WHERE id = %(app)s
ON CONFLICT (app_id, environment) DO UPDATE SET
    judged = b.judged * {_FADED} + excluded.judged, accepted = b.accepted * {_FADED} + excluded.accepted,
    bad_token = b.bad_token * {_FADED} + excluded.bad_token,
    wrong_topic = b.wrong_topic * {_FADED} + excluded.wrong_topic, gone = b.gone * {_FADED} + excluded.gone,
    updated_at = now()
"""

_LOAD = f"""
SELECT b.environment, b.accepted * f.faded AS accepted, b.bad_token * f.faded AS bad_token,
       b.wrong_topic * f.faded AS wrong_topic, b.gone * f.faded AS gone
FROM {{s}}.baselines b CROSS JOIN LATERAL (SELECT {_FADED} AS faded) f
WHERE b.app_id = %(app)s
"""


def load(transaction: Transaction, app_id: int) -> dict[str, Counts]:
    """An app's usual answers by environment."""
    rows = transaction.rows(_LOAD, {"app": app_id, "half_life": HALF_LIFE})
    return {row.pop("environment"): Counts(**row) for row in rows}


def add(transaction: Transaction, app_id: int, counts: Mapping[str, Counts]) -> None:
    """Add answers that the guard found in order, by environment. What was accepted in the other environment is a
    success of that one; an app that is gone is passed over."""
    for environment, found in sorted(_placed(counts).items()):
        if found.judged:
            values = {
                "judged": found.judged,
                "accepted": found.accepted,
                "bad_token": found.bad_token,
                "wrong_topic": found.wrong_topic,
                "gone": found.gone,
            }
            place = {"app": app_id, "environment": environment, "half_life": HALF_LIFE}
            transaction.execute(_ADD, values | place)


def _placed(counts: Mapping[str, Counts]) -> dict[str, Counts]:
    """The counts, with those that were moved in the environment that they were moved to."""
    placed: dict[str, Counts] = {}
    for environment, found in counts.items():
        moved = Counts(accepted=found.moved)
        other = next(each.value for each in Environment if each.value != environment)
        placed[environment] = placed.get(environment, Counts()) + found - moved
        placed[other] = placed.get(other, Counts()) + moved
    return placed
