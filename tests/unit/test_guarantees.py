"""Every promise of docs/guarantees.md names tests: they exist."""

from __future__ import annotations

import re

import pytest

from docs.generate import DOCS

TESTS = {
    name
    for path in (DOCS.parent / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
}


@pytest.mark.parametrize("name", re.findall(r"`(test_\w+)`", (DOCS / "guarantees.md").read_text()))
def test_a_test_that_the_guarantees_name_exists(name: str) -> None:
    assert name in TESTS
