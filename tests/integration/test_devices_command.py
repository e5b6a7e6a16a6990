"""`sender devices`, `users` and `changelog` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from sender import Sender
from sender.cli import main
from sender.store import apps, devices
from sender.store.database import Database
from sender.store.devices import Suspect

APP = "com.example.news"
Run = Callable[..., "Done"]


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def environment(database: Database) -> dict[str, str]:
    with database.transaction() as transaction:
        apps.add(transaction, APP)
    return {"SENDER_DATABASE_URL": database.url, "SENDER_DATABASE_SCHEMA": database.schema}


@pytest.fixture
def run(
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs `sender …` from an empty directory, in this process."""
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sender", *arguments])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Done(code, *capsys.readouterr())

    return run


def test_importing_from_standard_input_with_bad_lines_exits_3_and_keeps_them(
    environment: dict[str, str], tmp_path: Path
) -> None:
    text = "registration_id,user_id,age\nabcd,u1,7\nabc,u2,8\nef01,u3,old\n"
    arguments = ("--app", APP, "--map", "registration_id=token,user_id=user", "--type", "age:int")
    done = subprocess.run(
        [sys.executable, "-c", "from sender.cli import main; main()", "devices", "import", "-", *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert done.returncode == 3
    assert "1 added" in done.stdout
    assert "2 bad" in done.stdout
    assert "line 3: it has an odd number" in done.stderr
    assert "line 4: age: 'old' is not of type int" in done.stderr
    assert len((tmp_path / "stdin.rejects.csv").read_text().splitlines()) == 3
    assert "Traceback" not in done.stderr


def test_a_mistake_is_one_line_and_no_traceback(run: Run) -> None:
    for arguments, code in (
        (("devices", "import", "missing.csv", "--app", APP), 2),
        (("devices", "import", "x.csv", "--app", "com.example.unknown"), 1),
        (("devices", "show", "ffff"), 1),
        (("devices", "count", "--app", APP, "--where", "nonsense"), 2),
        (("users", "show", "nobody"), 1),
        (("changelog", "--after", "x"), 2),
    ):
        done = run(*arguments)
        assert done.returncode == code, arguments
        assert done.stderr.startswith("error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_devices_users_and_changelog_are_shown_to_people_and_programs(run: Run, sender: Sender) -> None:
    token = "ab" * 32
    sender.devices.register(APP, token, user="u", attributes={"plan": "pro"})
    assert json.loads(run("devices", "show", "abab", "--json").stdout)["token"] == token
    assert "plan" in run("devices", "show", "abab").stdout
    counted = json.loads(run("devices", "count", "--app", APP, "--where", "plan=pro", "--json").stdout)
    assert (counted["total"], counted["active"], counted["invalid"]) == (1, 1, 0)
    shown = json.loads(run("users", "show", "u", "--json").stdout)
    assert (shown["pushable_apps"], shown["devices"][0]["token"]) == ([APP], token)
    assert token not in run("users", "show", "u").stdout
    (change,) = json.loads(run("changelog", "--user", "u", "--json").stdout)
    assert (change["kind"], change["token"], change["actor"]) == ("registered", token, "application")
    assert json.loads(run("changelog", "--after", change["cursor"], "--json").stdout) == []
    table = run("changelog").stdout
    assert "registered" in table
    assert token not in table
    assert token in run("devices", "export", "--app", APP).stdout


def hit(database: Database, key: str, *tokens: str) -> None:
    """A campaign under that key to which APNs said BadDeviceToken for these tokens."""
    with database.transaction() as transaction:
        (campaign_id,) = transaction.execute(
            "INSERT INTO {s}.campaigns (app_id, key, state, content, payload, push_type, priority, segment, "
            "batch_size, expires_in, grace) SELECT id, %s, 'completed', '{}', '{}', 'alert', 10, '{}', 1, 1, 1 "
            "FROM {s}.apps RETURNING id",
            (key,),
        ).fetchone() or (0,)
        found = transaction.execute(
            "SELECT id, token FROM {s}.devices WHERE token = ANY(%s)", (list(tokens),)
        ).fetchall()
        hits = [
            Suspect(device_id=id, token=token, environment="production", reason="BadDeviceToken", apns_id=uuid4())
            for id, token in found
        ]
        devices.quarantine(transaction, hits, campaign_id)


def test_quarantine_is_listed_counted_released_confirmed_and_undone(
    run: Run, sender: Sender, database: Database
) -> None:
    tokens = ["ab" * 32, "cd" * 32, "ef" * 32]
    for token in tokens:
        sender.devices.register(APP, token)
    hit(database, "sale", *tokens)
    shown = json.loads(run("devices", "quarantined", "--app", APP, "--json").stdout)
    assert (shown["total"], shown["by_reason"]) == (3, {"BadDeviceToken": 3})
    assert (shown["devices"][0]["token"], shown["devices"][0]["campaign"]) == ("abababab…", "sale")
    assert not [token for token in tokens if token in run("devices", "quarantined").stdout]
    assert json.loads(run("devices", "quarantined", "--reason", "Other", "--json").stdout)["total"] == 0
    assert "1 device would be released" in run("devices", "release", "abab", "--dry-run").stdout
    assert json.loads(run("devices", "release", "abab", "--json").stdout) == {"released": 1, "dry_run": False}
    again = run("devices", "release", "abab")
    assert (again.returncode, again.stdout) == (2, "")
    assert "abab: is active, not quarantined" in again.stderr
    assert "2 devices confirmed as invalid" in run("devices", "confirm", "--campaign", "sale").stdout
    undone = json.loads(
        run("devices", "restore", "--reason", "BadDeviceToken", "--since", "2020-01-01T00:00:00Z", "--json").stdout
    )
    assert undone == {"total": 2, "restored": {"active": 2}, "skipped": {"released": 1}, "dry_run": False}
    assert "no device is in quarantine" in run("devices", "quarantined").stdout


def test_restore_says_what_it_would_do_does_it_and_says_what_it_leaves_alone(
    run: Run, sender: Sender, database: Database
) -> None:
    for token in ("ab" * 32, "cd" * 32):
        sender.devices.register(APP, token)
    hit(database, "sale", "ab" * 32, "cd" * 32)
    sender.devices.register(APP, "cd" * 32)
    rehearsed = run("devices", "restore", "--campaign", "sale", "--dry-run").stdout
    assert "1 device would be restored" in rehearsed
    assert "1 registered again since" in rehearsed
    done = json.loads(run("devices", "restore", "--campaign", "sale", "--json").stdout)
    assert done == {"total": 1, "restored": {"active": 1}, "skipped": {"revived": 1}, "dry_run": False}
    (change,) = json.loads(run("changelog", "--device", "abab", "--json").stdout)[-1:]
    assert (change["kind"], change["actor"], change["campaign"]) == ("restored", "operator", "sale")


def test_undoing_what_is_not_said_plainly_is_one_error(run: Run) -> None:
    for arguments, code in (
        (("restore",), 2),
        (("restore", "--campaign", "none"), 1),
        (("restore", "--reason", "BadDeviceToken"), 2),
        (("restore", "--reason", "BadDeviceToken", "--since", "yesterday"), 2),
        (("restore", "--reason", "BadDeviceToken", "--since", "2027-01-01T00:00:00Z", "--app", "x"), 1),
        (("release",), 2),
        (("confirm", "abab", "--campaign", "sale"), 2),
        (("confirm", "--campaign", "none"), 1),
        (("forget", "--user", ""), 2),
    ):
        done = run("devices", *arguments)
        assert done.returncode == code, arguments
        assert done.stderr.startswith("error: "), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_person_is_forgotten_only_when_that_is_confirmed(run: Run, sender: Sender) -> None:
    sender.devices.register(APP, "ab" * 32, user="anna")
    sender.devices.register(APP, "cd" * 32, user="anna")
    assert "would be erased: 2 devices" in run("devices", "forget", "--user", "anna", "--dry-run").stdout
    refused = run("devices", "forget", "--user", "anna")
    assert refused.returncode == 2
    assert "add --yes" in refused.stderr
    assert run("users", "show", "anna").returncode == 0
    done = json.loads(run("devices", "forget", "--user", "anna", "--yes", "--json").stdout)
    assert (done["known"], done["devices"], done["dry_run"]) == (True, 2, False)
    assert run("users", "show", "anna").returncode == 1
    again = run("devices", "forget", "--user", "anna", "--yes")
    assert (again.returncode, again.stdout) == (0, "nobody is known by that id: there is nothing to erase\n")
    assert "forgotten" in run("changelog").stdout
