"""Canary: a random sample of the audience that a campaign is sent to first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from sender.errors import InvalidInputError
from sender.policy.outcomes import RULES

MOST_REASONS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Send to a sample first (`share` of the audience, or a `count` of devices), weigh its results, then go on.

    `hold`: wait for `resume` even when the results are good. `thresholds`: APNs's reason → the share of the sample's
    answers above which the campaign is paused; a reason that is not named is judged by `sender.policy.canary`.

    Raises `InvalidInputError` with all faults.
    """

    share: float | None = None  # more than 0, at most 1
    count: int | None = None
    hold: bool = False
    thresholds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = [*self._size_faults(), *_threshold_faults(self.thresholds)]
        if not isinstance(self.hold, bool):
            faults.append("hold: must be True or False")
        if faults:
            raise InvalidInputError("canary", faults)

    def to_json(self) -> dict[str, Any]:
        """What is stored, and compared when the campaign's key is enqueued again."""
        size = {"share": float(self.share)} if self.share is not None else {"count": self.count}
        thresholds = {reason: float(share) for reason, share in sorted(self.thresholds.items())}
        return {**size, "hold": self.hold, "thresholds": thresholds}

    def wanted(self, audience: int) -> int:
        """How many devices of an audience the sample should have: at least one, at most all."""
        asked = self.count if self.count is not None else math.ceil((self.share or 0.0) * audience)
        return max(min(asked, audience), min(audience, 1))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Canary:
        """The canary that `to_json` wrote."""
        return cls(**{name: document[name] for name in ("share", "count", "hold", "thresholds") if name in document})

    def _size_faults(self) -> list[str]:
        if (self.share is None) == (self.count is None):
            return ["say how large the sample is: share (0.01 for 1 %) or count, one of the two"]
        if self.count is not None and not (_is_number(self.count, int) and self.count >= 1):
            return ["count: must be a whole number of devices, 1 or more"]
        if self.share is not None and not (_is_number(self.share, int, float) and 0 < self.share <= 1):
            return ["share: must be more than 0 and at most 1 (0.01 is 1 %)"]
        return []


def _threshold_faults(thresholds: Any) -> list[str]:
    if not isinstance(thresholds, Mapping) or len(thresholds) > MOST_REASONS:
        return [f"thresholds: must map at most {MOST_REASONS} of APNs's reasons to shares"]
    faults = []
    for reason, share in thresholds.items():
        if not isinstance(reason, str) or not reason.isascii() or not reason.isalnum() or len(reason) > 100:
            faults.append(f"thresholds: {str(reason)[:40]!r} is no reason of APNs, such as BadDeviceToken")
        elif meant := _misspelt(reason):
            faults.append(f"thresholds: {reason[:40]!r} is no reason of APNs: did you mean {meant}?")
        elif not (_is_number(share, int, float) and 0 <= share <= 1):
            faults.append(f"thresholds: {reason}: must be a share from 0 to 1 (0.02 is 2 %)")
    return faults


def _misspelt(reason: str) -> str | None:
    """The reason that is meant by one that nearly is it. Others may be new ones: reasons are an open set."""
    known = {rule.reason.lower(): rule.reason for rule in RULES}
    nearest = get_close_matches(reason.lower(), known, n=1, cutoff=0.85)
    meant = known[nearest[0]] if nearest else None
    return None if meant == reason else meant


def _is_number(value: Any, *kinds: type) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)
