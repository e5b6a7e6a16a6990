"""`sender devices`, `users` and `changelog` as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from sender import Sender
from sender.cli import main
from sender.store import apps
from sender.store.database import Database

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
