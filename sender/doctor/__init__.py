"""What `sender doctor` looks at: small checks that give findings, each with what to do about it."""

from __future__ import annotations

from sender.doctor.examination import NAMES, examine
from sender.doctor.findings import Finding, Status

__all__ = ["NAMES", "Finding", "Status", "examine"]
