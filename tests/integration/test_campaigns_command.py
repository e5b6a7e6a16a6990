"""`sender campaigns …` as a person and as a script run it."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from sender import Sender
from sender.cli import app as cli
from sender.cli.live import Pace, duration, one_line, render, watch
from sender.errors import SenderError
from sender.settings import Settings
from sender.store.database import Database
from sender.store.reports import PARTS
from tests.integration.campaign_rows import APP, add_app, add_batch, add_devices, add_retry, start
from tests.integration.test_activity import bind


@pytest.fixture(autouse=True)
def app(database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    bind(monkeypatch, settings)
    with database.transaction() as transaction:
        app_id = add_app(transaction)
        add_devices(transaction, app_id, 10)
        transaction.execute("UPDATE {s}.devices SET state = 'invalid' WHERE id %% 5 = 0", {})
        transaction.execute("""UPDATE {s}.devices SET attributes = '{"plan": "pro"}' WHERE id %% 2 = 0""", {})
    yield app_id


def run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(cli, ["campaigns", *arguments], input=stdin)


def succeed(*arguments: str, stdin: str | None = None) -> str:
    result = run(*arguments, stdin=stdin)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


def fail(*arguments: str) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, SenderError), result.output
    return str(result.exception)


def in_terminal(*arguments: str, answer: str | None = None, timeout: float = 60) -> tuple[int, str]:
    """Run the command with a terminal of its own; type the answer at its question."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [str(Path(sys.executable).parent / "sender"), "campaigns", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"},
        start_new_session=True,
    )
    os.close(slave)
    text, typed, end = "", False, time.monotonic() + timeout
    while time.monotonic() < end:
        if select.select([master], [], [], 0.2)[0]:
            try:
                text += os.read(master, 65536).decode(errors="replace")
            except OSError:
                break
        elif process.poll() is not None:
            break
        if answer is not None and not typed and "to send:" in text:
            os.write(master, answer.encode() + b"\n")
            typed = True
    code = process.wait(timeout=10)
    os.close(master)
    return code, text


ONE_STEP = ("send", "--app", APP, "--title", "Spring sale", "--key", "spring")


def test_a_campaign_is_sent_in_one_step_and_a_repeat_changes_nothing(sender: Sender) -> None:
    arguments = (*ONE_STEP, "--body", "20 %", "--where", "plan=pro", "--rate", "unlimited", "--expires-in", "12h")
    assert "spring is scheduled" in succeed(*arguments)
    row = sender.campaigns.load("spring")
    assert (row.rate, row.expires_in) == (None, 43_200)
    assert json.loads(row.payload)["aps"] == {"alert": {"title": "Spring sale", "body": "20 %"}}
    succeed(*arguments)
    assert len(sender.campaigns.list()) == 1
    assert "other content" in fail(*ONE_STEP, "--body", "30 %")


@pytest.mark.parametrize("option", ["--key", "--segment", "--sample", "--payload", "--exclude-sent"])
def test_an_option_that_is_empty_does_not_count_as_left_out(sender: Sender, option: str) -> None:
    """A script whose variable is not set would send to everybody, or again at its next run."""
    arguments = [argument for argument in ONE_STEP if option != "--key" or argument not in ("--key", "spring")]
    assert option.removeprefix("--").replace("-", "_") in fail(*arguments, option, "").replace("-", "_")
    assert sender.campaigns.list() == []


def test_a_name_that_is_twice_in_a_segment_file_is_refused(sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "segment.json").write_text('{"and": [{"attribute": "plan", "in": ["pro"], "in": ["free"]}]}')
    assert "'in' is there twice" in fail(*ONE_STEP, "--segment", str(tmp_path / "segment.json"))
    assert sender.campaigns.list() == []


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_script_whose_audience_is_empty_is_told_on_standard_error(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sender.store.segments.LOOKED_FOR", "1min")
    result = run(*ONE_STEP, "--where", "plan=none", *more)
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("warning: its audience is empty")
    succeed("create", "--app", APP, "--title", "Hi", "--key", "draft", "--where", "plan=none")
    assert "warning: its audience is empty" in run("send", "draft", *more).stderr


def test_every_option_reaches_the_campaign(sender: Sender, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_text('{"aps": {"alert": {"body": "from file"}, "badge": 3}, "a": [1]}')
    (tmp_path / "segment.json").write_text('{"not": {"attribute": "plan", "in": ["free"]}}')
    succeed(
        *ONE_STEP,
        *("--payload", str(tmp_path / "payload.json"), "--segment", str(tmp_path / "segment.json")),
        *("--subtitle", "sub", "--sound", "default", "--category", "cat", "--thread-id", "t", "--mutable-content"),
        *("--interruption-level", "active", "--data", "n=5", "--data", "link=app://x", "--collapse-id", "none"),
        *("--priority", "5", "--sample", "50%", "--rate", "0.5", "--batch-size", "1", "--delivery", "at_most_once"),
        *("--at", "2099-01-01T00:00:00+02:00", "--grace", "10m"),
    )
    row = sender.campaigns.load("spring")
    assert json.loads(row.payload) == {
        "aps": {
            "alert": {"body": "from file", "title": "Spring sale", "subtitle": "sub"},
            "badge": 3,
            "sound": "default",
            "category": "cat",
            "thread-id": "t",
            "interruption-level": "active",
            "mutable-content": 1,
        },
        "a": [1],
        "n": 5,
        "link": "app://x",
        "sender": {"campaign": "spring"},
    }
    assert row.segment == {
        "and": [
            {"not": {"attribute": "plan", "in": ["free"]}},
            {"percentage": 50.0, "seed": "spring"},
        ]
    }
    assert (row.collapse_id, row.priority, row.rate, row.batch_size) == (None, 5, 0.5, 1)
    assert (row.delivery, row.grace) == ("at_most_once", 600)
    assert row.send_at == datetime(2098, 12, 31, 22, tzinfo=UTC)


def test_a_payload_comes_from_standard_input_too(sender: Sender) -> None:
    succeed("send", "--app", APP, "--key", "spring", "--payload", "-", stdin='{"aps": {"alert": "piped"}}')
    assert json.loads(sender.campaigns.load("spring").payload)["aps"] == {"alert": "piped"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("send", "--title", "x"), "--app is missing"),
        (("send", "--app", APP), "needs an alert"),
        (("send", "--app", "com.nobody", "--title", "x"), "sender apps add"),
        ((*ONE_STEP, "--where", "plan"), "is no condition"),
        ((*ONE_STEP, "--rate", "fast"), "unlimited"),
        ((*ONE_STEP, "--rate", "0"), "more than 0"),
        ((*ONE_STEP, "--rate", "nan"), "more than 0"),
        ((*ONE_STEP, "--expires-in", "soon"), "is no duration"),
        ((*ONE_STEP, "--at", "2099-01-01T00:00:00"), "no time zone"),
        ((*ONE_STEP, "--sample", "many"), "is no share"),
        ((*ONE_STEP, "--sample", "200%"), "from 0 to 100"),
        ((*ONE_STEP, "--payload", "/nowhere.json"), "cannot read"),
        ((*ONE_STEP, "--segment", __file__), "is no JSON"),
        ((*ONE_STEP, "--data", "x"), "NAME=VALUE"),
        ((*ONE_STEP, "--data", "aps=1"), "no custom key"),
        ((*ONE_STEP, "--push-type", "x"), "must be one of"),
        ((*ONE_STEP, "--delivery", "x"), "at_most_once"),
        (("send", "spring", "--title", "x"), "takes no content"),
        (("send", "spring", "--badge", "0"), "takes no content"),
        (("send", "nobody"), "campaigns list"),
        (("show", "nobody"), "campaigns list"),
        (("preview", "nobody"), "campaigns list"),
    ],
)
def test_a_mistake_is_told_in_words_and_nothing_is_written(
    sender: Sender, arguments: tuple[str, ...], words: str
) -> None:
    assert words in fail(*arguments)
    assert sender.campaigns.list() == []


def test_all_mistakes_of_a_command_are_told_at_once() -> None:
    text = fail("send", "--app", APP, "--where", "a", "--rate", "x", "--expires-in", "y", "--at", "z", "--sample", "w")
    for option in ("--where", "--rate", "--expires-in", "--at"):
        assert option in text


def test_a_dry_run_shows_everything_and_writes_nothing(sender: Sender) -> None:
    text = succeed(*ONE_STEP, "--rate", "4", "--dry-run")
    for words in (
        "8 devices",
        "2 because their token is invalid",
        "4 pushes a second",
        "about 2 s",
        "nothing was written",
    ):
        assert words in text
    assert "apns-topic: com.example.news" in text
    wanted = json.loads(succeed(*ONE_STEP, "--dry-run", "--json"))
    assert (wanted["audience"], wanted["excluded"]) == (8, {"invalid": 2})
    assert wanted["request"]["payload"]["sender"] == {"campaign": "spring"}
    assert sender.campaigns.list() == []


def test_a_draft_is_created_previewed_and_sent(sender: Sender, database: Database) -> None:
    assert "spring is draft" in succeed("create", *ONE_STEP[1:])
    preview = json.loads(succeed("preview", "spring", "--json"))
    assert preview["method"] == "POST"
    assert preview["headers"]["apns-collapse-id"] == "spring"
    assert preview["bytes"] == len(sender.campaigns.load("spring").payload)
    assert "Spring sale" in succeed("preview", "spring")
    assert "nothing was written" in succeed("send", "spring", "--dry-run")
    assert sender.campaigns.load("spring").state == "draft"
    assert "spring is scheduled" in succeed("send", "spring")
    assert "possible now: cancel" in fail("send", "spring")


def test_show_as_json_has_every_figure_and_times_with_zone_and_microseconds(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP)
    campaign = start(database, "spring", audience_estimate=8, expiration="2099-01-01T00:00:00Z")
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET cut_devices = 8")
        add_batch(transaction, campaign, 8, sent=4, rejected=1, state="claimed", reasons={"Unregistered": 1})
        add_retry(transaction, campaign, 3, "ServiceUnavailable")
    shown = json.loads(succeed("show", "spring", "--json"))
    assert sum(shown[part] for part in PARTS) == shown["audience"] == 8
    assert (shown["key"], shown["state"], shown["rate"]) == ("spring", "running", 1000.0)
    assert shown["by_reason"] == {"Unregistered": 1}
    assert shown["finished_at"] is None
    for name in ("created_at", "started_at", "expiration"):
        assert "." in shown[name]
        assert shown[name].endswith("+00:00")
    text = succeed("show", "spring")
    assert "Unregistered" in text
    assert "The app was removed" in text


def test_pause_resume_cancel_and_list(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP)
    assert "cannot be paused" in fail("pause", "spring")
    start(database, "spring", audience_estimate=8)
    assert json.loads(succeed("pause", "spring", "--reason", "typo", "--json"))["state_reason"] == "typo"
    assert sender.campaigns.load("spring").state_actor == "operator"
    assert "running" in succeed("resume", "spring")
    assert json.loads(succeed("cancel", "spring", "--json"))["cancelled"] == 8
    listed = json.loads(succeed("list", "--json"))
    assert [(row["key"], row["state"]) for row in listed] == [("spring", "cancelled")]
    assert "spring" in succeed("list", "--app", APP, "--state", "cancelled")
    assert "no campaigns" in succeed("list", "--state", "draft")


@pytest.mark.parametrize(
    ("state", "actor", "code"),
    [
        ("completed", "system", 0),
        ("paused", "system", 4),
        ("cancelled", "operator", 5),
        ("failed", "system", 6),
        ("missed", "system", 6),
    ],
)
@pytest.mark.parametrize("way", ["--wait", "--watch"])
def test_waiting_tells_the_end_by_its_exit_code(
    database: Database, state: str, actor: str, code: int, way: str
) -> None:
    def end() -> None:
        finished = "" if state == "paused" else ", finished_at = now()"
        while not given_up.is_set():
            with database.transaction() as transaction:
                changed = transaction.execute(
                    f"UPDATE {{s}}.campaigns SET state = %s, state_actor = %s, started_at = now(){finished}",
                    (state, actor),
                ).rowcount
            if changed:
                return
            time.sleep(0.02)

    given_up = threading.Event()
    ending = threading.Thread(target=end)
    ending.start()
    try:
        result = run(*ONE_STEP, way)
    finally:
        given_up.set()
        ending.join()
    assert result.exit_code == code, result.output


def test_in_a_terminal_the_audiences_number_must_be_typed(sender: Sender) -> None:
    code, text = in_terminal(*ONE_STEP, answer="7")
    assert code == 1
    assert "8 devices" in text
    assert "nothing was sent" in text
    assert sender.campaigns.list() == []
    code, text = in_terminal(*ONE_STEP, answer="8")
    assert code == 0, text
    assert sender.campaigns.load("spring").state == "scheduled"


def test_in_a_terminal_yes_does_not_ask(sender: Sender) -> None:
    code, text = in_terminal(*ONE_STEP, "--yes")
    assert code == 0, text
    assert "to send:" not in text
    assert sender.campaigns.load("spring").state == "scheduled"


def test_the_live_view_shows_progress_speed_and_reasons_and_ends_with_the_campaign(
    sender: Sender, database: Database
) -> None:
    succeed(*ONE_STEP)
    campaign = start(database, "spring", audience_estimate=1000)
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET cut_devices = 1000, cut_finished = true")
        batch = add_batch(transaction, campaign, 1000, state="claimed", sent=100)
        add_retry(transaction, campaign, 3, "TooManyRequests", 429)

    def until_shown(*words: str) -> None:
        end = time.monotonic() + 60
        while not all(each in console.export_text(clear=False) for each in words):
            assert time.monotonic() < end, words
            time.sleep(0.02)

    def go_on() -> None:
        for sent in (200, 300, 400, 500):
            until_shown(f"{(sent - 100) / 10}%")
            with database.transaction() as transaction:
                transaction.execute("UPDATE {s}.batches SET sent = %s WHERE id = %s", (sent, batch))
        with database.transaction() as transaction:
            transaction.execute(
                "UPDATE {s}.batches SET sent = 900, rejected = 99, reasons = '{\"Unregistered\": 99}' WHERE id = %s",
                (batch,),
            )
        until_shown("Unregistered", "left")
        with database.transaction() as transaction:
            transaction.execute("DELETE FROM {s}.retries")
            transaction.execute("UPDATE {s}.batches SET sent = 901, state = 'done' WHERE id = %s", (batch,))
            transaction.execute("UPDATE {s}.campaigns SET state = 'completed', finished_at = now()")

    console = Console(force_terminal=True, width=120, record=True)
    thread = threading.Thread(target=go_on)
    thread.start()
    report = watch(sender, "spring", console=console, refresh=0.2)
    thread.join()
    assert (report.sent, report.rejected, report.state) == (901, 99, "completed")
    text = console.export_text()
    for words in ("10.0%", "100.0%", "TooManyRequests", "Unregistered", "The app was removed", "left", "completed"):
        assert words in text, words


def test_a_held_campaign_says_why_and_how_to_go_on(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP)
    start(database, "spring", state="paused", state_actor="system", state_reason="BadTopic")
    console = Console(width=120, record=True)
    console.print(render(sender.campaigns.report("spring")))
    text = console.export_text()
    assert "BadTopic" in text
    assert "sender campaigns resume spring" in text
    with database.transaction() as transaction:
        transaction.execute("UPDATE {s}.campaigns SET state = 'running'")
        transaction.execute("UPDATE {s}.apps SET state = 'paused', state_reason = 'InvalidProviderToken'")
    result = run("wait", "spring")
    assert result.exit_code == 4
    assert "InvalidProviderToken" in result.output
    assert f"sender apps resume {APP}" in " ".join(result.output.split())


def test_waiting_has_an_end_when_it_was_given_one(database: Database) -> None:
    succeed(*ONE_STEP)
    result = run("wait", "spring", "--timeout", "0.1s", "--json")
    assert result.exit_code == 7
    assert json.loads(result.stdout)["state"] == "scheduled"
    assert "wait again" in result.stderr
    assert "no duration" in fail("wait", "spring", "--timeout", "soon")


def test_a_campaign_that_waits_for_a_person_promises_no_end(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP)
    start(database, "spring", rate=100, audience_estimate=1000)
    sender.apps.set_rate(APP, 20)
    running = succeed("show", "spring")
    assert "at most 20/s, its app's limit" in running
    assert "left" in running
    sender.apps.pause(APP, "InvalidProviderToken: look at the key.")
    held = succeed("show", "spring")
    assert "if it goes on now" in held
    assert "look at the key; to go on: sender apps resume" in " ".join(held.split())
    assert " left" not in held


def test_a_slow_campaign_that_is_watched_does_not_seem_to_stand_still(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP, "--rate", "0.2")
    campaign = start(database, "spring", audience_estimate=1000)
    with database.transaction() as transaction:
        add_batch(transaction, campaign, 5, sent=5, finished_at=sender.campaigns.report("spring").now)

    def finish() -> None:
        end = time.monotonic() + 60
        while not console.export_text(clear=False) and time.monotonic() < end:
            time.sleep(0.02)
        with database.transaction() as transaction:
            transaction.execute("UPDATE {s}.campaigns SET state = 'completed', finished_at = now()")

    console = Console(width=120, record=True, force_terminal=False)
    finishing = threading.Thread(target=finish)
    finishing.start()
    watch(sender, "spring", console=console)
    finishing.join()
    running = console.export_text().splitlines()[0]  # nothing was answered while it watched
    assert re.search(r"spring: running, .*, (\d+|0\.\d+)/s$", running), running
    assert not running.endswith(", 0/s"), running


def test_a_dry_run_tells_the_rate_that_a_time_comes_to(sender: Sender) -> None:
    shown = succeed(*[*ONE_STEP, "--over", "10s", "--dry-run"])
    assert "pushes a second, to spread it over the time it takes" in shown


def test_the_pace_is_measured_by_the_databases_clock(sender: Sender, database: Database) -> None:
    succeed(*ONE_STEP)
    campaign = start(database, "spring", audience_estimate=1000)
    pace = Pace()
    pace.add(sender.campaigns.report("spring"))
    assert pace.now is None
    with database.transaction() as transaction:
        add_batch(transaction, campaign, 1000, sent=1000)
    report = sender.campaigns.report("spring")
    pace.add(report)
    assert pace.now is not None
    assert pace.now > 0
    assert "sent 1,000" in one_line(report, pace.now)
    assert [duration(seconds) for seconds in (5, 100, 3700, 400_000)] == ["5 s", "01:40", "1:01:40", "5 days"]
