"""Small pieces of the tables that commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.measure import Measurement
from rich.table import Table

from sender.cli.output import SafeConsole, console


def table(*columns: str) -> Table:
    """A table without lines, whose cells do not break; a column that begins with # is right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left", no_wrap=True)
    return made


def facts(pairs: Mapping[str, str] | Sequence[tuple[str, str]]) -> Table:
    """Names and values, a line each; long values are folded."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
        made.add_row(name, value)
    return made


def print_table(made: Table) -> None:
    """As wide as the terminal; in a pipe or a file as wide as its contents."""
    if console.is_terminal:
        console.print(made, markup=False, highlight=False)
        return
    wide = SafeConsole(width=10_000)
    width = max(Measurement.get(wide, wide.options, made).maximum, 1)
    SafeConsole(width=width).print(made, markup=False, highlight=False)


def moment(at: datetime | None) -> str:
    """A time for people, in UTC and to the second."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def listed(items: Sequence[object]) -> str:
    """Items behind one another, or a dash."""
    return ", ".join(str(item) for item in items) or "-"


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the singular or the plural: 1 device, 2,000 devices."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
