from datetime import UTC, datetime, timedelta

import pytest

from sender.policy.registration import is_news, state_after_registration
from sender.policy.states import DeviceState

NOW = datetime(2026, 7, 26, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.mark.parametrize(
    ("before", "until", "after"),
    [
        (DeviceState.ACTIVE, None, DeviceState.ACTIVE),
        (DeviceState.INVALID, None, DeviceState.ACTIVE),
        (DeviceState.QUARANTINED, None, DeviceState.ACTIVE),
        (DeviceState.QUARANTINED, NOW + HOUR, DeviceState.BLOCKLISTED),
        (DeviceState.INVALID, NOW - HOUR, DeviceState.ACTIVE),
        (DeviceState.BLOCKLISTED, NOW + HOUR, DeviceState.BLOCKLISTED),
        (DeviceState.OPTED_OUT, None, DeviceState.OPTED_OUT),
    ],
)
def test_registering_revives_and_neither_opts_in_nor_ends_a_blocklisting(
    before: DeviceState, until: datetime | None, after: DeviceState
) -> None:
    assert state_after_registration(before, until, NOW) is after


def test_only_a_registration_later_than_the_known_one_is_news() -> None:
    assert is_news(NOW, NOW - HOUR, NOW + HOUR)
    assert not is_news(NOW, NOW, NOW - HOUR)


def test_without_a_known_registration_the_change_of_state_counts() -> None:
    assert not is_news(NOW, None, NOW + HOUR)
    assert is_news(NOW, None, NOW - HOUR)
