"""What the answers of a batch say of the tokens, counted for the guard by the environment that they are stored in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sender.engine.preparing import Plan
from sender.engine.protection.guard import Tally
from sender.model import ACCEPTED, Accepted, Answer, Rejected
from sender.policy.guard import Counts

_QUARANTINED = "quarantined"


def tally(plan: Plan, answers: Sequence[Answer | None]) -> dict[str, Tally]:
    """Count the answers of a plan. Answers that say nothing of the token (429, 5xx, none) are left out, and so are
    refusals of tokens that are in quarantine already: they are what was expected."""
    if answers.count(ACCEPTED) == len(answers) and not plan.moves:
        return {
            environment: Tally(counts=Counts(accepted=len(places))) for environment, places in plan.groups if places
        }
    moved = Counter(move.stored for move in plan.moves)
    found = {environment: _count(plan, answers, places) for environment, places in plan.groups if places}
    for environment, each in found.items():
        each.counts += Counts(moved=moved[environment])
        each.probed = plan.probed.get(environment, 0)
    return found


def _count(plan: Plan, answers: Sequence[Answer | None], places: Sequence[int]) -> Tally:
    others = [at for at in places if answers[at] is not ACCEPTED]
    accepted, bad_token, wrong_topic, gone = len(places) - len(others), 0, 0, 0
    refused = []
    for at in others:
        answer = answers[at]
        if type(answer) is Accepted:
            accepted += 1
        elif type(answer) is Rejected and plan.targets[at].state != _QUARANTINED:
            if answer.status == 410:
                gone += 1
            elif answer.reason == "BadDeviceToken":
                bad_token += 1
                refused.append(plan.targets[at].device_id)
            elif answer.reason == "DeviceTokenNotForTopic":
                wrong_topic += 1
                refused.append(plan.targets[at].device_id)
    counts = Counts(accepted=accepted, bad_token=bad_token, wrong_topic=wrong_topic, gone=gone)
    return Tally(counts=counts, refused=refused)
