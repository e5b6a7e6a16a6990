"""How many rows of each table a piece of code makes PostgreSQL look at: every statement is explained as it runs.

Counted is what a scan returned and what its filter threw away, not what the plan expected: a sequential scan of a
large table shows, whatever the planner calls it, and so does an index that serves the wrong question.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from sender.store.database import Params, Transaction

_EXPLAINABLE = re.compile(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", re.IGNORECASE)
_PARTITION = re.compile(r"(deliveries|changelog)_(\d{4}_\d{2}|default)$")


@dataclass(slots=True)
class Looked:
    """Rows looked at, by table; `partitions` are those of the ledger and the changelog that were looked into."""

    rows: Counter[str] = field(default_factory=Counter)
    partitions: dict[str, set[str]] = field(default_factory=dict)
    whole: Counter[str] = field(default_factory=Counter)  # rows of sequential scans
    worst: dict[str, tuple[int, str]] = field(default_factory=dict)  # table → (rows, statement)

    def note(self, table: str, rows: int, *, sequential: bool, statement: str) -> None:
        """Add one scan."""
        if found := _PARTITION.search(table):
            table = found[1]
            self.partitions.setdefault(table, set()).add(found[2])
        self.rows[table] += rows
        if sequential:
            self.whole[table] += rows
        if rows > self.worst.get(table, (-1, ""))[0]:
            self.worst[table] = (rows, " ".join(statement.split()))


@contextmanager
def watched() -> Iterator[Looked]:
    """Explain whatever runs in the block through `Transaction`. Each statement runs twice: once for the plan, and is
    undone."""
    looked = Looked()
    render = Transaction._render

    def explained(self: Transaction, statement: Any, params: Params) -> tuple[str, Params]:
        text, values = render(self, statement, params)
        if _EXPLAINABLE.match(text):
            _explain(self, text, values, looked)
        return text, values

    with patch.object(Transaction, "_render", explained):
        yield looked


def _explain(transaction: Transaction, text: str, values: Params, looked: Looked) -> None:
    connection = transaction.connection
    connection.execute("SAVEPOINT watching")
    try:
        row = connection.execute(f"EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) {text}", values).fetchone()
    finally:
        connection.execute("ROLLBACK TO SAVEPOINT watching")
    document = row[0] if row else []
    for plan in json.loads(document) if isinstance(document, str) else document:
        _walk(plan["Plan"], text, looked)


def _walk(node: dict[str, Any], statement: str, looked: Looked) -> None:
    if "Relation Name" in node and "Scan" in node["Node Type"] and node["Actual Loops"]:
        thrown = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        rows = round((node["Actual Rows"] + thrown) * node["Actual Loops"])
        looked.note(node["Relation Name"], rows, sequential="Seq Scan" in node["Node Type"], statement=statement)
    for child in node.get("Plans", []):
        _walk(child, statement, looked)
