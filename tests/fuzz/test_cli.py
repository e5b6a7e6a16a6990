"""Every command with hostile arguments: exit 0, or a code and one clear message; never a traceback, never a hang."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from sender.cli import BUG, app, main
from sender.client import Sender
from sender.settings import Settings
from sender.store import apps
from sender.store.database import Database
from tests.fuzz.profile import AWKWARD, FACTOR, fuzz, texts

BUNDLE, KEY = "com.example.fuzz", "done"
#: Exit codes that a command may end with: done, refused, and those that docs/errors.md or --help name.
CODES = {0, 1, 2, 3, 4, 5, 6}

Command = tuple[tuple[str, ...], click.Command]


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[Command]:
    """Every command with the words that lead to it."""
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for name, inner in sorted(command.commands.items()):
            yield from leaves(inner, (*path, name))
    else:
        yield path, command


COMMANDS = list(leaves(typer.main.get_command(app)))


@pytest.fixture
def run(
    settings: Settings, database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[int, str]]]:
    """Runs `sender ARGUMENTS…` here, on an app with a device and a cancelled campaign; gives exit code and stderr."""
    for name, value in {
        "SENDER_DATABASE_URL": settings.require_database_url(),
        "SENDER_DATABASE_SCHEMA": settings.database_schema,
        "SENDER_BROKER_URL": settings.require_broker_url(),
        "SENDER_QUEUE_PREFIX": settings.queue_prefix,
        "SENDER_DATA_DIR": str(tmp_path / "data"),
        "SENDER_APNS_PRODUCTION_URL": "https://127.0.0.1:1",
        "SENDER_APNS_SANDBOX_URL": "https://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    _populate(settings, database)
    _shorten(monkeypatch)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sender", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
        said = io.BytesIO()
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(said, "utf-8", errors="backslashreplace"))
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        sys.stdout.flush()
        sys.stderr.flush()
        return int(code or 0), said.getvalue().decode()

    yield run


def _populate(settings: Settings, database: Database) -> None:
    with database.transaction() as transaction:
        app_id = apps.add(transaction, BUNDLE)
        transaction.execute(
            "INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id) "
            "VALUES (%s, 'production', 'key', '/nowhere.p8', 'TEAM123456', 'KEY1234567')",
            (app_id,),
        )
    with Sender(settings=settings) as sender:
        sender.devices.register(BUNDLE, "ab" * 32, user="u-1")
        sender.campaigns.enqueue(BUNDLE, key=KEY, payload={"aps": {"alert": "x"}})
        sender.campaigns.cancel(KEY)


def _shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would run for ever ends at once: servers and processes are not started, nobody waits."""

    def ended(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for name in (
        "sender.stack.up.run_stack",
        "sender.stack.commands.exec_command",
        "sender.cli.simulate._simulator",
        "sender.rehearsal.Rehearsal.__enter__",
        "sender.cli.changelog.time.sleep",
        "sender.campaigns.time.sleep",
    ):
        monkeypatch.setattr(name, ended)


def check(run: Callable[..., tuple[int, str]], *arguments: str) -> int:
    code, said = run(*arguments)
    assert code != BUG and "Traceback" not in said, (arguments, said[-2000:])
    assert code in CODES or code == 130, (arguments, code, said[-500:])
    assert said.strip() or code != 2, arguments
    return code


GOOD = (
    *(
        BUNDLE,
        KEY,
        "u-1",
        "ab" * 32,
        "abab",
        "1",
        "10",
        "0.5",
        "plan=pro",
        "x=1",
        "1h",
        "50%",
        "unlimited",
        "-",
        "true",
    ),
    *("2027-01-01T00:00:00Z", "production", "json", "csv", "/dev/null", "/nowhere", "devices.csv", "token=token"),
)
#: A system passes no NUL on, and of bytes that are no UTF-8 these.
arguments = st.one_of(
    st.sampled_from(GOOD),
    texts.filter(lambda text: "\0" not in text),
    st.sampled_from(["\udcff", "a\udce9", "--\udcff", "\udced\udca0\udc80"]),
)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    path, command = draw(st.sampled_from(COMMANDS))
    line = list(path)
    for parameter in draw(st.lists(st.sampled_from(command.params), max_size=5)) if command.params else []:
        if isinstance(parameter, click.Argument) or parameter.param_type_name == "argument":
            line.append(draw(arguments))
        else:
            option = draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts]))
            flag = getattr(parameter, "is_flag", False)
            line += (
                [option]
                if flag
                else draw(
                    st.one_of(
                        arguments.map(lambda text, o=option: [o, text]),
                        arguments.map(lambda text, o=option: [f"{o}={text}"]),
                    )
                )
            )
    return line + draw(st.lists(arguments, max_size=1))


@fuzz(80)
@given(command_lines())
def test_any_command_line(run: Callable[..., tuple[int, str]], line: list[str]) -> None:
    check(run, *line)


def test_every_argument_of_every_command_with_awkward_texts(run: Callable[..., tuple[int, str]]) -> None:
    every = 1 if FACTOR > 1 else 37  # of the awkward texts: other ones for each parameter
    number = 0
    for path, command in COMMANDS:
        needed = [
            part
            for parameter in command.params
            if parameter.required
            for part in ([] if parameter.param_type_name == "argument" else [parameter.opts[0]]) + [_good(parameter)]
        ]
        for parameter in command.params:
            if getattr(parameter, "is_flag", False) or parameter.name == "help":
                continue
            number += 1
            for text in AWKWARD[number % every :: every]:
                if "\0" in text:
                    continue
                if parameter.param_type_name == "argument":
                    check(run, *path, "--", text)
                else:
                    check(run, *path, *needed, parameter.opts[0], text)


def _good(parameter: Any) -> str:
    """A value that is most likely right."""
    name = parameter.name or ""
    return KEY if "key" in name else "ab" * 32 if "token" in name else "u-1" if "user" in name else BUNDLE


def test_words_that_are_no_command(run: Callable[..., tuple[int, str]]) -> None:
    for text in AWKWARD[:: 1 if FACTOR > 1 else 6]:
        if "\0" not in text:
            check(run, text)
            check(run, "campaigns", text)
