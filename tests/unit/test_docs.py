"""The documentation against the code: generated parts, links, settings and commands."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import sender
from docs.generate import DOCS, diagram, generated, with_diagrams
from sender.cli import app
from sender.policy.states import APP_MOVES, AppState
from sender.settings import Settings

ROOT = DOCS.parent
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SOURCES = sorted([*ROOT.glob("sender/**/*.py"), *ROOT.glob("tasks/**/*.py"), *ROOT.glob("config/**/*.py")])


@pytest.mark.parametrize("path", generated(), ids=lambda path: path.name)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    assert path.read_text() == generated()[path], "run `make docs`"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    row = re.search(rf"\| `SENDER_{name.upper()}` \| (.*) \| (.*) \|", (DOCS / "settings.md").read_text())
    assert row, "add it to a group in sender/settings.py"
    assert row[2] != name.replace("_", " "), "give it a comment in sender/settings.py"


def test_a_diagram_has_an_arrow_for_each_move_and_no_other() -> None:
    arrows = re.findall(r"^    (\S+) --> (\S+)$", diagram(AppState, APP_MOVES), flags=re.MULTILINE)
    assert arrows == [("[*]", "active"), ("active", "paused"), ("paused", "active")]


def test_drawing_diagrams_twice_changes_nothing() -> None:
    page = (DOCS / "architecture.md").read_text()
    assert with_diagrams(with_diagrams(page)) == with_diagrams(page)
    assert page.count("```mermaid") == 7


def anchors(path: Path) -> set[str]:
    """The anchors that a renderer makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" not in target:
                yield page, target


@pytest.mark.parametrize(("page", "target"), list(links()), ids=lambda value: getattr(value, "name", value))
def test_every_link_leads_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    assert not anchor or anchor in anchors(file)


def test_every_setting_that_the_documentation_names_exists() -> None:
    known = {f"SENDER_{name.upper()}" for name in Settings.model_fields}
    known |= {"SENDER_DATABASE_PASSWORD_FILE", "SENDER_BROKER_PASSWORD_FILE"}  # of deploy/entrypoint.py
    named = {name for page in PAGES for name in re.findall(r"\bSENDER_(?!TEST_)[A-Z_]*[A-Z]\b", page.read_text())}
    assert named <= known


def test_decisions_have_numbers_of_their_own() -> None:
    numbers = [path.name[:3] for path in (DOCS / "decisions").glob("*.md")]
    assert len(numbers) == len(set(numbers)) and all(number.isdigit() for number in numbers)


# --- paths ----------------------------------------------------------------------------------------------------------

#: A path of this repository, from its top or from sender/, or a module's file alone; and a test in it.
NAMED = re.compile(
    r"(?<![\w/.-])((?:sender|tasks|config|tests|docs|deploy)/[\w/.-]*[\w/]|(?:[a-z_]+/)*[a-z_]+\.py)(?:::(test_\w+))?"
)


def named() -> Iterator[tuple[str, str, str]]:
    """(file, path, test in it or nothing) of every path that the documentation and the docstrings speak of."""
    for file in [*PAGES, *SOURCES]:
        for path, test in NAMED.findall(file.read_text()):
            yield str(file.relative_to(ROOT)), path, test


@pytest.mark.parametrize(("file", "path", "test"), sorted(set(named())))
def test_every_path_that_is_named_exists(file: str, path: str, test: str) -> None:
    found = [place for place in (ROOT / path, ROOT / "sender" / path) if place.exists()]
    assert found or path in {source.name for source in SOURCES}, f"{file} speaks of {path}"
    assert not test or f"def {test}(" in found[0].read_text()


def test_every_make_target_and_module_that_is_named_exists() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:^ *|`)make ([a-z]+)", text, flags=re.MULTILINE)) <= targets
    modules = [ROOT / name.replace(".", "/") for name in re.findall(r"python -m (tests[\w.]*\w)", text)]
    assert modules and all(
        (module / "__main__.py").exists() or module.with_suffix(".py").exists() for module in modules
    )


# --- commands -------------------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of every `sender …` in the documentation's code blocks and backticks."""
    for page in PAGES:
        text = page.read_text()
        blocks = [
            line
            for block in re.findall(r"```(?:sh|console|bash)\n(.*?)```", text, flags=re.S)
            for line in joined(block)
        ]
        spans = re.findall(r"`(sender [^`\n]+)`", text)
        for line in [*blocks, *spans]:
            line = re.sub(r"^\$ ", "", line.strip())
            if line.startswith("sender ") and "…" not in line:
                yield page.name, line


def joined(block: str) -> list[str]:
    """The lines of a shell block, with backslash continuations put together."""
    return block.replace("\\\n", " ").splitlines()


def parse(line: str) -> list[str]:
    """The options of a command line that the command does not have. Fails on an unknown command."""
    words = shlex.split(re.split(r"\s[|>&]", line)[0].replace("[", " ").replace("]", " "), comments=True)[1:]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name = words.pop(0)
        assert name in command.commands, f"no command {name!r} in {line!r}"
        command = command.commands[name]
    options = {flag for each in command.params for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
    return [word.partition("=")[0] for word in words if word.startswith("--") and word.partition("=")[0] not in options]


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_every_command_in_the_documentation_exists_with_its_options(page: str, line: str) -> None:
    assert parse(line) == []


def test_every_advice_names_commands_that_exist() -> None:
    from sender.policy.outcomes import OWN_REASONS, RULES

    advice = [*(rule.advice for rule in RULES), *(text for _, text in OWN_REASONS.values())]
    for line in {line for text in advice for line in re.findall(r"`(sender [^`]+)`", text)}:
        assert parse(line) == [], line


# --- Python ---------------------------------------------------------------------------------------------------------

BLOCKS = [
    (page.name, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=[f"{page}-{n}" for n, (page, _) in enumerate(BLOCKS)])
def test_every_call_in_the_documentation_exists_with_its_arguments(page: str, block: str) -> None:
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "sender":
            assert [name.name for name in node.names if not hasattr(sender, name.name)] == []
        if isinstance(node, ast.Call):
            verb = verb_of(node.func)
            if verb is not None:
                names = {keyword.arg for keyword in node.keywords}
                assert names <= set(inspect.signature(verb).parameters), ast.unparse(node)


def verb_of(function: ast.expr) -> Any:
    """What a call in an example calls: Payload(…), Segment.where(…), sender.devices.register(…); None for others."""
    match function:
        case ast.Name(id="Payload" | "Alert" | "Sound" | "Sender" as name):
            return getattr(sender, name)
        case ast.Attribute(value=ast.Attribute(value=ast.Name(id="sender"), attr=noun), attr=verb):
            return getattr(getattr(sender.Sender(), noun), verb)
    return None


def test_the_first_example_is_as_short_as_promised() -> None:
    block = next(block for page, block in BLOCKS if page == "README.md")
    assert len([line for line in block.splitlines() if line.strip()]) == 8
