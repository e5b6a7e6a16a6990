"""The figures of a campaign: whatever the engine has written, they add up to the audience."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sender import Sender
from sender.policy.states import CampaignState
from sender.store import reports
from sender.store.database import Database
from sender.store.reports import FINAL, PARTS, Report
from tests.integration.campaign_rows import APP, PAYLOAD, add_app, add_batch, add_devices, add_retry, start


def total(report: Report) -> int:
    assert all(getattr(report, name) >= 0 for name in PARTS)
    return sum(getattr(report, name) for name in PARTS)


@pytest.fixture
def campaign(database: Database, sender: Sender) -> Iterator[int]:
    with database.transaction() as transaction:
        add_devices(transaction, add_app(transaction), 3)
    sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD)
    yield start(database, "spring")


def test_before_the_start_the_audience_is_what_it_would_be_now(database: Database, sender: Sender) -> None:
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        add_devices(transaction, app_id, 3)
        transaction.execute("UPDATE {s}.devices SET state = 'invalid' WHERE token LIKE '%%3'", {})
    report = sender.campaigns.enqueue(APP, key="spring", payload=PAYLOAD).report()
    assert (report.audience, report.pending, report.audience_is_estimate) == (2, 2, True)
    assert report.excluded == {"invalid": 1}


def test_a_campaign_in_full_flight(campaign: int, database: Database, sender: Sender) -> None:
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET audience_estimate = 1000, cut_devices = 400")
        add_batch(transaction, campaign, 100, sent=90, rejected=8, reasons={"Unregistered": 8})
        add_batch(
            transaction,
            campaign,
            100,
            state="claimed",
            sent=20,
            rejected=4,
            reasons={"BadDeviceToken": 3, "Unregistered": 1},
        )
        add_batch(transaction, campaign, 100, state="open")
        add_batch(transaction, campaign, 100, state="open", expired=1, reasons={"Expired": 1})
        retry = add_batch(transaction, campaign, 2, kind="retry", state="claimed")
        add_retry(transaction, campaign, 1, "ServiceUnavailable")
        add_retry(transaction, campaign, 2, "TooManyRequests")
        transaction.execute("UPDATE {s}.retries SET batch_id = %s", (retry,))
    report = sender.campaigns.report("spring")
    assert report.sent == 110
    assert report.rejected == 12
    assert report.expired == 1
    assert report.retrying == 2
    assert report.in_flight == 76
    assert report.pending == 1000 - 110 - 12 - 1 - 2 - 76
    assert total(report) == report.audience == 1000
    assert report.audience_is_estimate
    assert report.by_reason == {"Unregistered": 9, "BadDeviceToken": 3, "Expired": 1}
    assert report.retrying_by_reason == {"ServiceUnavailable": 1, "TooManyRequests": 1}


def test_once_it_is_cut_the_audience_is_what_was_cut(campaign: int, database: Database, sender: Sender) -> None:
    with database.transaction() as transaction:
        transaction.execute(
            "UPDATE {s}.campaigns SET audience_estimate = 7, cut_devices = 10, cut_finished = true, state = 'completed'"
        )
        add_batch(transaction, campaign, 10, sent=10)
    report = sender.campaigns.report("spring")
    assert (report.audience, report.audience_is_estimate, report.sent, report.pending) == (10, False, 10, 0)


@pytest.mark.parametrize(("state", "part"), [("cancelled", "cancelled"), ("failed", "failed"), ("missed", "expired")])
def test_what_an_ended_campaign_never_cut_has_its_end_too(
    campaign: int, database: Database, sender: Sender, state: str, part: str
) -> None:
    with database.transaction() as transaction:
        transaction.execute(
            "UPDATE {s}.campaigns SET audience_estimate = 100, cut_devices = 20, cut_finished = true, "
            "cut_cursor = 5, state = %s, finished_at = now()",
            (state,),
        )
        add_batch(transaction, campaign, 20, sent=15, cancelled=5, reasons={"Cancelled": 5})
    report = sender.campaigns.report("spring")
    assert report.sent == 15
    assert getattr(report, part) == 80 + (5 if part == "cancelled" else 0)
    assert report.pending == 0
    assert sum(report.by_reason.values()) == 85
    assert total(report) == report.audience == 100


BATCHES = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["first", "first", "retry"]),
            "state": st.sampled_from(["open", "claimed", "done"]),
            "outcomes": st.lists(st.sampled_from([*FINAL, "retry", None]), max_size=12),
        }
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=BATCHES,
    state=st.sampled_from([state for state in CampaignState if state not in ("draft", "scheduled")]),
    estimate=st.integers(0, 100),
    finished=st.booleans(),
    cursor=st.sampled_from([0, 10**9]),
)
def test_the_figures_always_add_up(
    campaign: int,
    database: Database,
    batches: list[dict[str, Any]],
    state: CampaignState,
    estimate: int,
    finished: bool,
    cursor: int,
) -> None:
    """Batches as the engine leaves them: a device of a first batch is final, or waits in the retries, or is open; one
    of a retry batch waits in the retries until it is final."""
    with database.transaction() as transaction:
        transaction.execute("DELETE FROM {s}.batches")
        transaction.execute("DELETE FROM {s}.retries")
        device, cut, finals, waiting = 0, 0, 0, 0
        for batch in batches:
            outcomes = batch["outcomes"]
            if batch["kind"] == "retry":  # devices that an earlier first batch handed over
                cut += len(outcomes)
                add_batch(transaction, campaign, len(outcomes), state="done")
            else:
                cut += len(outcomes)
            counts = {name: outcomes.count(name) for name in FINAL}
            again = [one for one in outcomes if one == "retry" or (one is None and batch["kind"] == "retry")]
            for _ in again:
                device += 1
                add_retry(transaction, campaign, device, "ServiceUnavailable")
            finals, waiting = finals + sum(counts.values()), waiting + len(again)
            add_batch(transaction, campaign, len(outcomes), kind=batch["kind"], state=batch["state"], **counts)
        transaction.execute(
            "UPDATE {s}.campaigns SET state = %s, audience_estimate = %s, cut_devices = %s, cut_finished = %s, "
            "cut_cursor = %s",
            (state.value, estimate, cut, finished, cursor),
        )
        report = reports.read(transaction, "spring")
    assert total(report) == report.audience
    assert report.audience >= cut
    assert report.retrying == waiting
    ended_early = state in ("cancelled", "failed", "missed")
    assert report.final == (report.audience - report.retrying - report.in_flight if ended_early else finals)


def test_twenty_thousand_batches_are_counted_in_one_statement(
    campaign: int, database: Database, sender: Sender
) -> None:
    with database.transaction() as transaction:
        transaction.execute(
            "INSERT INTO {s}.batches (campaign_id, device_ids, size, state, sent, rejected, reasons) "
            "SELECT %s, array(SELECT generate_series(1, 50)::bigint), 50, 'done', 49, 1, '{\"Unregistered\": 1}' "
            "FROM generate_series(1, 20000)",
            (campaign,),
        )
        transaction.execute("UPDATE {s}.campaigns SET cut_devices = 1000000, cut_finished = true")
    report = sender.campaigns.report("spring")
    assert (report.sent, report.rejected, report.audience) == (980_000, 20_000, 1_000_000)
    assert report.by_reason == {"Unregistered": 20_000}
