"""When a month has been kept for long enough."""

from __future__ import annotations

from datetime import date, timedelta

from hypothesis import given
from hypothesis import strategies as st

from sender.policy.retention import Step, changelog_step, due_on, ledger_step

AFTER = date(2027, 2, 1)  # the month is January


def test_a_month_is_thinned_out_when_its_last_day_is_old_enough_and_not_a_day_before() -> None:
    def on(day: date) -> Step:
        return ledger_step(AFTER, day, sent=30, errors=180)

    assert on(date(2027, 3, 2)) is Step.KEEP  # 30 days after the 31st of January
    assert on(date(2027, 3, 3)) is Step.REMOVE_SENT
    assert on(date(2027, 7, 30)) is Step.REMOVE_SENT
    assert on(date(2027, 7, 31)) is Step.DROP


def test_what_has_no_term_is_kept_for_ever() -> None:
    late = date(2100, 1, 1)
    assert ledger_step(AFTER, late, sent=None, errors=None) is Step.KEEP
    assert ledger_step(AFTER, late, sent=30, errors=None) is Step.REMOVE_SENT
    assert changelog_step(AFTER, late, days=None) is Step.KEEP


@given(day=st.dates(date(2027, 1, 1), date(2030, 1, 1)), days=st.integers(1, 800))
def test_no_day_of_a_month_that_goes_is_younger_than_its_term(day: date, days: int) -> None:
    last = AFTER - timedelta(days=1)
    dropped = changelog_step(AFTER, day, days=days) is Step.DROP
    assert dropped == (day - last > timedelta(days=days)) == (day >= due_on(AFTER, days))
