"""What a campaign's canary is and how far it has come, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sender.audience.canary import Canary
from sender.policy.canary import percent
from sender.policy.states import CampaignState, CanaryState
from sender.store.reports import Report


def canary_text(report: Report) -> str:
    """A line on a campaign's canary; empty when it has none."""
    if report.canary is None:
        return ""
    sample, result = sample_text(report.canary), report.canary.get("result", "")
    resumed = report.state is CampaignState.RUNNING
    if report.finished and report.canary_state != CanaryState.PASSED:
        return f"canary: {sample}; it had not passed when the campaign ended"
    match report.canary_state:
        case CanaryState.WAITING | CanaryState.STOPPED if resumed:
            return "canary: resumed by a person: the rest follows"
        case CanaryState.SENDING:
            return f"canary: {sample} first; the rest waits for its results"
        case CanaryState.WAITING:
            return f"canary: waits for a person: {result}"
        case CanaryState.STOPPED:
            return f"canary: stopped: {result}; resuming sends the rest all the same"
        case CanaryState.PASSED:
            return f"canary: passed: {result}" if result else "canary: passed"
        case _:
            return f"canary: {sample} first{', then waits' if report.canary.get('hold') else ''}"


def sample_text(canary: Mapping[str, Any]) -> str:
    """How large the sample is, and what it may come to."""
    asked = Canary.from_json(canary)
    size = canary.get("size")
    share = f"{asked.count:,} devices" if asked.count is not None else f"{percent(asked.share or 0)} of the audience"
    limits = ", ".join(f"{reason} at most {percent(most)}" for reason, most in asked.thresholds.items())
    return (f"{size:,} devices" if size is not None else share) + (f" ({limits})" if limits else "")
