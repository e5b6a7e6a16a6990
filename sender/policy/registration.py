"""What registering and importing do to a device's state. Apple: the same token registered again is alive again.

Registering is the app itself speaking; importing repeats what somebody once knew, and revives nothing unless it knows
of a registration that we have not seen.
"""

from __future__ import annotations

from datetime import datetime

from sender.policy.states import DeviceState

#: States that a registration ends. An opted-out device stays so: apps register at every launch.
REVIVABLE = frozenset({DeviceState.INVALID, DeviceState.QUARANTINED})


def state_when_reachable(blocklisted_until: datetime | None, now: datetime) -> DeviceState:
    """The state of a device that nothing else stands against: a blocklisting goes on until its end."""
    resting = blocklisted_until is not None and blocklisted_until > now
    return DeviceState.BLOCKLISTED if resting else DeviceState.ACTIVE


def state_after_registration(state: DeviceState, blocklisted_until: datetime | None, now: datetime) -> DeviceState:
    """The state of a known device after its app registered the token again."""
    return state_when_reachable(blocklisted_until, now) if state in REVIVABLE else state


def is_news(registered_at: datetime, known: datetime | None, state_changed_at: datetime) -> bool:
    """Whether a registration at that time is one that we have not seen: only such a one revives a device.

    A device without a known registration time is compared with the moment its state changed.
    """
    return registered_at > (known if known is not None else state_changed_at)
