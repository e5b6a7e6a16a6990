"""The promises of docs/guarantees.md, and the pages that follow it, name tests: they exist."""

from __future__ import annotations

import re

import pytest

from docs.generate import DOCS

TESTS = {
    name
    for path in (DOCS.parent / "tests").rglob("test_*.py")
    for name in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.MULTILINE)
}


NAMED = {name for page in DOCS.rglob("*.md") for name in re.findall(r"`(test_\w+)`", page.read_text())}


@pytest.mark.parametrize("name", sorted(NAMED))
def test_a_test_that_the_documentation_names_exists(name: str) -> None:
    assert name in TESTS
