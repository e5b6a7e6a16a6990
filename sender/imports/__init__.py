"""Importing devices from files: CSV or JSONL, gzipped or not, of any size in flat memory."""

from __future__ import annotations

from sender.imports.options import (
    COLUMNS,
    AttributeType,
    BadLine,
    ImportReport,
    InactiveAs,
    Options,
    Progress,
    Stage,
    parse_map,
    parse_types,
)
from sender.imports.run import run_import

__all__ = [
    "COLUMNS",
    "AttributeType",
    "BadLine",
    "ImportReport",
    "InactiveAs",
    "Options",
    "Progress",
    "Stage",
    "parse_map",
    "parse_types",
    "run_import",
]
