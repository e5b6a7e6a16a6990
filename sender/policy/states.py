"""The state machines, as data. Anything that is not in these maps is invalid.

docs/architecture.md draws them from here.

Every write of a state is a compare-and-set on the states that the map allows as its source: zero rows changed is a
normal answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

State = TypeVar("State", bound=StrEnum)


class CampaignState(StrEnum):
    """The life of a campaign."""

    DRAFT = "draft"  # written, not released
    SCHEDULED = "scheduled"  # released; tick starts it when it is due
    RUNNING = "running"  # being cut and sent
    PAUSED = "paused"  # by a person or by the system; resumes where it stopped
    COMPLETED = "completed"  # every device of the audience has its final outcome
    CANCELLED = "cancelled"  # by a person; what was not sent is recorded as cancelled
    FAILED = "failed"  # the message is wrong, we have a bug, or whom to leave out is not known: nothing more is sent
    MISSED = "missed"  # due so long ago that sending it now would be wrong


CAMPAIGN_MOVES: Mapping[CampaignState, frozenset[CampaignState]] = {
    CampaignState.DRAFT: frozenset({CampaignState.SCHEDULED, CampaignState.CANCELLED}),
    CampaignState.SCHEDULED: frozenset(  # failed: whom it must leave out is not known any more
        {CampaignState.RUNNING, CampaignState.MISSED, CampaignState.CANCELLED, CampaignState.FAILED}
    ),
    CampaignState.RUNNING: frozenset(
        {CampaignState.PAUSED, CampaignState.COMPLETED, CampaignState.CANCELLED, CampaignState.FAILED}
    ),
    CampaignState.PAUSED: frozenset({CampaignState.RUNNING, CampaignState.CANCELLED, CampaignState.FAILED}),
    CampaignState.COMPLETED: frozenset(),
    CampaignState.CANCELLED: frozenset(),
    CampaignState.FAILED: frozenset(),
    CampaignState.MISSED: frozenset(),
}


class DeviceState(StrEnum):
    """Whether a device may be pushed to, and if not, why."""

    ACTIVE = "active"  # pushable
    BLOCKLISTED = "blocklisted"  # APNs said TooManyRequests: not before blocklisted_until
    QUARANTINED = "quarantined"  # BadDeviceToken or DeviceTokenNotForTopic: the token or our configuration is wrong
    INVALID = "invalid"  # APNs said that the token is gone, or the app unregistered it
    OPTED_OUT = "opted_out"  # the user asked for no pushes


DEVICE_MOVES: Mapping[DeviceState, frozenset[DeviceState]] = {
    DeviceState.ACTIVE: frozenset(
        {DeviceState.BLOCKLISTED, DeviceState.QUARANTINED, DeviceState.INVALID, DeviceState.OPTED_OUT}
    ),
    DeviceState.BLOCKLISTED: frozenset(
        {DeviceState.ACTIVE, DeviceState.QUARANTINED, DeviceState.INVALID, DeviceState.OPTED_OUT}
    ),
    # Where a device becomes active again, its blocklisting goes on if it has not ended.
    DeviceState.QUARANTINED: frozenset(
        {DeviceState.ACTIVE, DeviceState.BLOCKLISTED, DeviceState.INVALID, DeviceState.OPTED_OUT}
    ),
    DeviceState.INVALID: frozenset(  # registering again revives; an operator restores
        {DeviceState.ACTIVE, DeviceState.BLOCKLISTED, DeviceState.QUARANTINED, DeviceState.OPTED_OUT}
    ),
    DeviceState.OPTED_OUT: frozenset({DeviceState.ACTIVE, DeviceState.BLOCKLISTED, DeviceState.INVALID}),
}


class BatchState(StrEnum):
    """The life of a batch of devices of one campaign."""

    OPEN = "open"  # waits for a worker
    CLAIMED = "claimed"  # a worker holds it under (owner, epoch) until its lease ends
    DONE = "done"  # every device of it is final or waits in the retries


BATCH_MOVES: Mapping[BatchState, frozenset[BatchState]] = {
    BatchState.OPEN: frozenset({BatchState.CLAIMED, BatchState.DONE}),  # done without a claim: cancelled
    BatchState.CLAIMED: frozenset({BatchState.OPEN, BatchState.DONE}),  # open again: released or reclaimed
    BatchState.DONE: frozenset(),
}


class Outcome(StrEnum):
    """The final state of one delivery: every device of an audience ends in exactly one of these."""

    SENT = "sent"  # APNs accepted it
    REJECTED = "rejected"  # APNs refused it, for a reason that a retry does not mend
    SKIPPED = "skipped"  # could no longer be reached when its turn came (moved, opted out, invalidated meanwhile)
    EXPIRED = "expired"  # its expiration came before it could be delivered
    UNKNOWN = "unknown"  # no answer; it may have arrived
    CANCELLED = "cancelled"  # the campaign was cancelled first
    FAILED = "failed"  # our own error, or the campaign failed first


class AppState(StrEnum):
    """Whether an app's campaigns may send."""

    ACTIVE = "active"  # its campaigns may send
    PAUSED = "paused"  # by a person, or by a configuration error that APNs named


APP_MOVES: Mapping[AppState, frozenset[AppState]] = {
    AppState.ACTIVE: frozenset({AppState.PAUSED}),
    AppState.PAUSED: frozenset({AppState.ACTIVE}),
}


class BreakerState(StrEnum):
    """Whether anything is sent with a credential (team, key or certificate, environment)."""

    CLOSED = "closed"  # sends, at its adaptive pace if it has one
    OPEN = "open"  # nothing is sent; deliveries wait untouched
    HALF_OPEN = "half_open"  # one worker sends single probes; their answers close or open it


BREAKER_MOVES: Mapping[BreakerState, frozenset[BreakerState]] = {
    BreakerState.CLOSED: frozenset({BreakerState.OPEN}),
    BreakerState.OPEN: frozenset({BreakerState.HALF_OPEN, BreakerState.CLOSED}),  # closed at once: by a person
    BreakerState.HALF_OPEN: frozenset({BreakerState.CLOSED, BreakerState.OPEN}),
}


class TrialState(StrEnum):
    """How far the guard trusts a campaign in one environment."""

    TRIAL = "trial"  # few pushes may be outstanding; invalidations are staged
    TRUSTED = "trusted"  # its first results were as they should be: full speed
    TRIPPED = "tripped"  # its results point at the configuration: paused, nothing was invalidated


TRIAL_MOVES: Mapping[TrialState, frozenset[TrialState]] = {
    TrialState.TRIAL: frozenset({TrialState.TRUSTED, TrialState.TRIPPED}),
    TrialState.TRUSTED: frozenset({TrialState.TRIPPED}),
    TrialState.TRIPPED: frozenset({TrialState.TRIAL}),  # resumed by a person: it starts slowly again
}


class CanaryState(StrEnum):
    """How far a campaign with a canary is."""

    SENDING = "sending"  # only its sample is cut and sent
    WAITING = "waiting"  # the sample has good results; paused until a person resumes it (`--hold`)
    PASSED = "passed"  # the rest is cut and sent
    STOPPED = "stopped"  # the guard tripped, or the sample's results were over a threshold: paused


CANARY_MOVES: Mapping[CanaryState, frozenset[CanaryState]] = {
    CanaryState.SENDING: frozenset({CanaryState.WAITING, CanaryState.PASSED, CanaryState.STOPPED}),
    CanaryState.WAITING: frozenset({CanaryState.PASSED}),
    CanaryState.STOPPED: frozenset({CanaryState.PASSED}),  # a person resumed it all the same
    CanaryState.PASSED: frozenset(),
}


def sources(moves: Mapping[State, frozenset[State]], target: State) -> frozenset[State]:
    """The states from which `target` can be reached in one move: the left side of the compare-and-set."""
    return frozenset(state for state, targets in moves.items() if target in targets)
