"""What the results of a canary's sample say: go on, or stop. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

#: Share of the sample's answers with one reason above which the campaign stops, when no threshold names the reason...
DEFAULT_THRESHOLD = 0.10

#: ...and only from so many devices on, if any was accepted: one bad token among five says nothing.
DEFAULT_LEAST = 3

#: Reasons without a default threshold: an old table may be half dead, and 410 is not held against a provider.
HARMLESS = frozenset({"Unregistered", "ExpiredToken"})

#: Share of the sample that must have its final outcome before it is weighed: what waits for a retry or for the end of
#: a blocklisting does not hold the others up, but an outage of APNs is no result.
ENOUGH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A canary's sample as far as it has come, in devices."""

    size: int
    final: int
    answered: int  # of these, with an answer of APNs, or none where one was due: sent, rejected, unknown, failed
    reasons: Mapping[str, int]  # of the answered that were not accepted
    waiting: Mapping[str, int] = field(default_factory=dict)  # reason -> devices that wait for another attempt

    @property
    def accepted(self) -> int:
        """Devices whose push APNs took."""
        return self.answered - sum(self.reasons.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """The verdict: whether the rest may go, and the figures in words."""

    passed: bool
    words: str


def is_ready(sample: Sample) -> bool:
    """Whether a sample, of which nothing is under way, has enough results to be weighed."""
    return sample.final >= ENOUGH * sample.size


def weigh(sample: Sample, thresholds: Mapping[str, float]) -> Weighed:
    """Compare each reason's share of the answers with its threshold.

    What waits for another attempt has had an answer too, but counts only where a threshold names its reason. A sample
    of which nobody was sent to says nothing, and does not let the rest go.
    """
    if sample.size and not sample.answered:
        return Weighed(passed=False, words=f"none of the {sample.size:,} devices of the sample could be sent to")
    reasons = sorted({*sample.reasons, *(reason for reason in sample.waiting if reason in thresholds)})
    over = [words for reason in reasons if (words := _over(sample, reason, thresholds))]
    figures = f"{sample.accepted:,} of {sample.answered:,} answers of the sample were accepted"
    return Weighed(passed=not over, words="; ".join(over) if over else figures)


def _over(sample: Sample, reason: str, thresholds: Mapping[str, float]) -> str:
    """The figures of a reason that is over its threshold; empty when it is not."""
    count, answers = sample.reasons.get(reason, 0), sample.answered
    allowed = thresholds.get(reason)
    if allowed is not None:
        count, answers = count + sample.waiting.get(reason, 0), answers + sum(sample.waiting.values())
    elif reason in HARMLESS or (count < DEFAULT_LEAST and sample.accepted):
        return ""
    else:
        allowed = DEFAULT_THRESHOLD
    share = count / answers
    if share <= allowed:
        return ""
    return f"{reason} {count:,} of {answers:,} answers ({percent(share)}), at most {percent(allowed)} allowed"


def percent(share: float) -> str:
    """A share for people: 4.6 %."""
    return f"{share * 100:.3g} %"
