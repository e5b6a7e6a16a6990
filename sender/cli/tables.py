"""Small pieces of the tables that commands print."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table


def table(*columns: str) -> Table:
    """A table without lines, whose columns do not break; a column that begins with # is right-aligned."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column.removeprefix("#"), justify="right" if column.startswith("#") else "left", no_wrap=True)
    return made


def moment(at: datetime | None) -> str:
    """A time for people, in UTC and to the second."""
    return "" if at is None else f"{at:%Y-%m-%d %H:%M:%S}"


def listed(items: Sequence[object]) -> str:
    """Items behind one another, or a dash."""
    return ", ".join(str(item) for item in items) or "-"
