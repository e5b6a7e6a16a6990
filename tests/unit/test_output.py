"""What the commands print: nobody's text steers the terminal it is shown on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from sender.cli import BUG
from sender.cli.output import console, error_console, report_bug, report_error, visible
from sender.cli.tables import facts, print_table, table
from sender.errors import InvalidInputError, NotFoundError

HOSTILE = "a\x1b]0;title\x07\x1b[2J\u202eb\ud800\x9bc"


def test_control_characters_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    console.print(HOSTILE, markup=False)
    error_console.print(HOSTILE)
    cells = table("user")
    cells.add_row(HOSTILE)
    print_table(cells)
    print_table(facts({"user": HOSTILE}))
    report_error(NotFoundError("user", HOSTILE))
    report_error(InvalidInputError(HOSTILE, [HOSTILE, HOSTILE]))
    shown = "".join(capsys.readouterr())
    assert shown.count("\\x1b]0;title") == 8
    assert not {"\x1b", "\x07", "\u202e", "\ud800", "\x9b"} & set(shown)


def test_brackets_and_names_of_emojis_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[/red] [link=https://x]sale[/link] [a b] :smile:"
    console.print(text)
    error_console.print(text)
    cells = table("user")
    cells.add_row(text)
    print_table(cells)
    print_table(facts({text: text}))
    console.print(cells)
    report_error(NotFoundError("user", text))
    report_error(InvalidInputError(text, [text, text]))
    assert "".join(capsys.readouterr()).count(text) == 10


def test_lines_tabs_and_other_alphabets_stay() -> None:
    text = "line\n\tтекст 日本 🎉 é"
    assert visible(text) == text


def test_an_error_that_nobody_foresaw_is_one_line_without_values(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ValueError(f"duplicate key\nDETAIL:  Key (who)=(anna)\ntoken {'ab' * 32}")
    report_bug(error)
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "unexpected ValueError: duplicate key:" in shown and "anna" not in shown
    monkeypatch.setenv("SENDER_LOG_LEVEL", "debug")
    report_bug(error)
    shown = capsys.readouterr().err
    assert "anna" not in shown and "ab" * 32 not in shown and "DETAIL: …" in shown


def test_the_command_ends_with_a_code_of_its_own_for_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sender.cli as cli

    def broken(_words: object) -> None:
        raise RuntimeError(f"who is {'cd' * 32}?")

    monkeypatch.setattr("sender.cli.root.make_app", broken)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr().err
    assert caught.value.code == BUG
    assert "Traceback" not in shown and "RuntimeError: who is cdcdcdcd…?" in shown


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "error: cannot write what is shown: No space left"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.rejects.csv"), 1, "error: cannot write x.rejects.csv: No"),
    ],
)
def test_an_interruption_and_a_full_disk_are_no_bugs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, words: str
) -> None:
    import sender.cli as cli

    def broken(_words: object) -> None:
        raise error

    monkeypatch.setattr("sender.cli.root.make_app", broken)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr().err
    assert caught.value.code == code and shown.startswith(words) and "bug" not in shown


@pytest.mark.parametrize("show", ["console.print('x')", "print_json({})"])
def test_a_reader_that_has_enough_is_no_error(show: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = f"from sender.cli.output import console, print_json; {show}; raise SystemExit(1)"
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
