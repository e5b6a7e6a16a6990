"""Pace, deadlines and stops on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from sender import Sender
from sender.cli import app as cli
from sender.errors import SenderError
from sender.settings import Settings
from sender.store.database import Database
from tests.integration.campaign_rows import APP, add_app, add_batch, add_devices, start
from tests.integration.test_activity import bind

ONE_STEP = ("campaigns", "send", "--app", APP, "--title", "Spring sale", "--key", "spring")


@pytest.fixture(autouse=True)
def app(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    bind(monkeypatch, settings)
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        add_devices(transaction, app_id, 1000)
    yield app_id


def run(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments)


def succeed(*arguments: str) -> Any:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result


def fail(*arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, SenderError), result.output
    assert result.exit_code != 0
    return str(result.exception)


def under_way(database: Database) -> None:
    """The campaign with 100 devices accepted and 50 in flight, with a worker that is not there any more."""
    id_ = start(database, "spring", audience_estimate=1000)
    with database.transaction() as transaction:
        add_batch(transaction, id_, 100, sent=100)
        add_batch(transaction, id_, 50, state="claimed")


def test_a_campaign_is_spread_over_a_time_and_warns_of_its_deadline(sender: Sender) -> None:
    result = succeed(*ONE_STEP, "--over", "2h", "--finish-by", "2026-01-01T00:00:00Z", "--expires-in", "1h")
    assert result.stderr.count("warning: it cannot finish") == 2
    row = sender.campaigns.load("spring")
    assert (row.over, row.rate) == (7200.0, None)
    assert row.finish_by is not None
    assert row.finish_by.year == 2026


def test_a_dry_run_says_what_would_not_be_done_in_time() -> None:
    plan = json.loads(succeed(*ONE_STEP, "--over", "2h", "--expires-in", "1h", "--dry-run", "--json").stdout)
    assert (plan["over"], plan["seconds"]) == (7200.0, 7200.0)
    assert "expire unsent" in plan["warnings"][0]


def test_rate_and_over_exclude_each_other() -> None:
    assert "exclude each other" in fail(*ONE_STEP, "--over", "2h", "--rate", "5")


def test_a_pause_says_what_was_sent_is_under_way_and_remains(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP)
    under_way(database)
    output = succeed("campaigns", "pause", "spring", "--reason", "a look").stdout
    assert "100 accepted, 50 in flight, 850 remain: not every worker" in output
    assert "campaign 'spring' is paused already" in fail("campaigns", "pause", "spring")
    report = json.loads(succeed("campaigns", "show", "spring", "--json").stdout)
    assert (report["sent"], report["in_flight"], report["pending"]) == (100, 50, 850)
    assert "acknowledged" not in report


def test_a_pause_as_json_says_whether_it_was_heeded(database: Database) -> None:
    succeed(*ONE_STEP)
    start(database, "spring")
    assert json.loads(succeed("campaigns", "pause", "spring", "--json").stdout)["acknowledged"] is True
    succeed("campaigns", "resume", "spring")
    assert json.loads(succeed("campaigns", "cancel", "spring", "--json").stdout)["acknowledged"] is True


def test_a_paused_app_says_what_its_campaigns_have_sent(database: Database) -> None:
    succeed(*ONE_STEP)
    under_way(database)
    output = succeed("apps", "pause", APP, "--reason", "a look").stdout
    assert "is paused" in output
    assert "100 accepted, 50 in flight, 850 remain" in output
    assert "is paused already: a look" in succeed("apps", "pause", APP, "--reason", "another").stdout


def test_pace_and_deadlines_are_set_on_the_way(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP)
    under_way(database)
    report = json.loads(
        succeed("campaigns", "set", "spring", "--rate", "0.5", "--finish-by", "2026-01-01T00:00:00Z", "--json").stdout
    )
    assert report["rate"] == 0.5
    assert "cannot finish by" in report["warnings"][0]
    assert report["expected_finish"] is not None
    shown = succeed("campaigns", "show", "spring").stdout
    assert "warning: it cannot finish by" in " ".join(shown.split())
    succeed("campaigns", "set", "spring", "--rate", "unlimited", "--finish-by", "none")
    row = sender.campaigns.load("spring")
    assert (row.rate, row.finish_by) == (None, None)
    succeed("campaigns", "set", "spring", "--over", "15m")
    assert sender.campaigns.load("spring").rate == pytest.approx(1.0)


def test_nothing_of_what_has_ended_is_set_and_nothing_is_not_a_change(sender: Sender) -> None:
    succeed(*ONE_STEP)
    assert "nothing to change" in fail("campaigns", "set", "spring")
    succeed("campaigns", "cancel", "spring")
    assert "cancelled: nothing of it can be changed" in fail("campaigns", "set", "spring", "--rate", "5")
    assert "see `sender campaigns list`" in fail("campaigns", "set", "nobody", "--rate", "5")


def test_whom_an_ended_campaign_was_sent_to_is_left_out(sender: Sender) -> None:
    succeed(*ONE_STEP)
    again = ("campaigns", "send", "--app", APP, "--title", "Mended", "--key", "mended", "--exclude-sent", "spring")
    assert "cancel it first" in fail(*again)
    succeed("campaigns", "cancel", "spring", "--reason", "wrong price")
    succeed(*again, "--delivery", "at_most_once")
    assert sender.campaigns.load("mended").segment["and"][1] == {"not_sent": "spring", "or_unknown": True}
