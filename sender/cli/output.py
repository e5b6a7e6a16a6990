"""What the commands share: consoles, JSON, and how an error is shown."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any, NoReturn
from uuid import UUID

from rich.console import Console
from rich.text import Text

from sender.errors import InvalidInputError, SenderError
from sender.redaction import redact

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


class SafeConsole(Console):
    """Shows the control characters of texts, as \\x1b, instead of obeying them: no file or user steers a terminal.

    Nor is anything markup or an emoji's name, unless a line of ours asks for it: keys and users may hold brackets.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """As Rich's, which every text and every cell of a table goes through."""
        return super().render_str(visible(text), **options)

    def on_broken_pipe(self) -> None:
        """Rich calls this when whoever read has enough."""
        end_quietly()


console = SafeConsole()
error_console = SafeConsole(stderr=True)


def visible(text: str) -> str:
    """The text with control characters, turns of direction and what is no UTF-8 escaped; line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def report_error(error: SenderError) -> None:
    """One line on standard error; a line a fault when there are several."""
    if isinstance(error, InvalidInputError) and len(error.faults) > 1:
        _say_error(f"error: {error.what}:")
        for fault in error.faults:
            error_console.print(f"  - {fault}", markup=False, highlight=False, soft_wrap=True)
        return
    _say_error(f"error: {error}")


def report_bug(error: Exception) -> None:
    """One line of an error that nobody foresaw; with SENDER_LOG_LEVEL=debug where it happened. Both redacted.

    (PostgreSQL's messages go on with the values of rows: only the first line of any message is shown.)
    """
    import os
    import traceback

    words = (redact(str(error)).strip().splitlines() or [""])[0]
    name = type(error).__name__ + (f": {words}" if words else "")
    if os.environ.get("SENDER_LOG_LEVEL") == "debug":  # not from the settings: they may be what is wrong
        _say_error(redact("".join(traceback.format_exception(error))).rstrip())
    _say_error(f"error: unexpected {name}: this is a bug, or a server broke off; SENDER_LOG_LEVEL=debug shows where")


def _say_error(text: str) -> None:
    error_console.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


def warn(warnings: Sequence[str]) -> None:
    """A line each on standard error."""
    for warning in warnings:
        error_console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    try:
        print(json.dumps(jsonable(value), ensure_ascii=False), flush=True)
    except BrokenPipeError:
        end_quietly()


def end_quietly() -> NoReturn:
    """End without a word and with exit code 0: `sender … | head` is no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes there
    raise SystemExit(0)


def jsonable(value: Any) -> Any:
    """Dataclasses, times and the like as JSON has them; times as ISO 8601 with zone and microseconds."""
    match value:
        case datetime():
            return value.isoformat(timespec="microseconds")
        case date() | UUID():
            return str(value)
        case Mapping():
            return {str(key): jsonable(item) for key, item in value.items()}
        case list() | tuple() | set() | frozenset():
            return [jsonable(item) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value
