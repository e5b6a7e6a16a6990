"""docs/errors.md: one section for each reason, with what it means, what the sender does and what a person can do."""

from __future__ import annotations

import re

import pytest

from docs.generate import DOCS
from sender.policy.outcomes import FALLBACKS, NO_ANSWER, NOT_PROCESSED, OWN_REASONS, RULES

PAGE = (DOCS / "errors.md").read_text()
SECTIONS = dict(re.findall(r"^### (\S+)$\n(.*?)(?=^##|\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
ALL = [*RULES, *FALLBACKS.values(), NO_ANSWER, NOT_PROCESSED]


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.reason)
def test_every_reason_has_a_section_with_its_meaning_and_advice(rule) -> None:
    assert rule.meaning in SECTIONS[rule.reason]
    assert f"**What to do:** {rule.advice}" in SECTIONS[rule.reason]
    assert "**What the sender does:**" in SECTIONS[rule.reason]


@pytest.mark.parametrize("reason", OWN_REASONS)
def test_reasons_of_our_own_are_explained_too(reason: str) -> None:
    meaning, advice = OWN_REASONS[reason]
    assert meaning in SECTIONS[reason] and advice in SECTIONS[reason]


def test_every_reason_has_one_anchor() -> None:
    titles = re.findall(r"^### (\S+)$", PAGE, flags=re.MULTILINE)
    assert len(titles) == len({title.lower() for title in titles})


def test_the_words_say_that_a_quarantined_token_is_kept() -> None:
    assert "not thrown away" in SECTIONS["BadDeviceToken"]


def test_the_words_say_that_a_later_registration_saves_a_token() -> None:
    assert "unless it was registered after" in SECTIONS["Unregistered"]
