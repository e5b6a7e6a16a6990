"""The rounds as a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos.runner import Round

_COLUMNS = (
    "round",
    "seed",
    "delivery",
    "faults (devices in flight)",
    "seconds",
    "sent",
    "duplicates/bound",
    "unknown/bound",
    "lost",
    "open",
    "verdict",
)


def head() -> str:
    """The table's first two lines."""
    return f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}"


def row(round_: Round) -> str:
    """The line of one round."""
    verdict = round_.verdict
    cells = (
        round_.label,
        "" if round_.seed is None else str(round_.seed),
        round_.delivery,
        ", ".join(round_.struck) or "none",
        f"{round_.seconds:.1f}",
        f"{verdict.sent:,}",
        f"{verdict.duplicates:,}/{verdict.bound.repeats:,}",
        f"{verdict.unknown:,}/{verdict.bound.unknown:,}",
        str(verdict.lost),
        str(verdict.open),
        "holds" if verdict.holds else "**broken**: " + "; ".join(line.replace("\n", " ") for line in verdict.faults),
    )
    return f"| {' | '.join(cells)} |"


def summary(rounds: Sequence[Round]) -> str:
    """The figures of all rounds of a kind of delivery, one line each."""
    lines = []
    for delivery in dict.fromkeys(each.delivery for each in rounds):
        verdicts = [each.verdict for each in rounds if each.delivery == delivery]
        lines.append(
            f"{delivery}: {len(verdicts)} rounds, {sum(verdict.holds for verdict in verdicts)} hold; "
            f"{sum(verdict.sent for verdict in verdicts):,} sent, "
            f"{sum(verdict.lost for verdict in verdicts)} lost, {sum(verdict.open for verdict in verdicts)} open, "
            f"{sum(verdict.duplicates for verdict in verdicts):,} duplicates "
            f"(bound {sum(verdict.bound.repeats for verdict in verdicts):,}), "
            f"{sum(verdict.unknown for verdict in verdicts):,} unknown "
            f"(bound {sum(verdict.bound.unknown for verdict in verdicts):,})"
        )
    return "\n".join(lines)
