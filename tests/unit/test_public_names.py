"""`import sender`: every public name, and the command line's entry, without importing what nobody asked for."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sender

HEAVY = ("pydantic", "sqlalchemy", "psycopg", "typer", "rich", "redis", "kombu")


def test_every_public_name_is_found_where_type_checkers_find_it() -> None:
    tree = ast.parse(Path(sender.__file__).read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == sender._HOMES
    assert {*seen, "__version__"} == set(sender.__all__)
    everything: dict[str, object] = {}
    exec("from sender import *", everything)
    assert all(everything[name] is getattr(sender, name) for name in sender.__all__)
    assert set(sender.__all__) <= set(dir(sender))


def test_a_name_that_there_is_not_is_an_error_like_any_modules() -> None:
    with pytest.raises(AttributeError, match="module 'sender' has no attribute 'Campagin'"):
        sender.Campagin
    with pytest.raises(ImportError, match="cannot import name 'Campagin'"):
        exec("from sender import Campagin")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)


def test_the_commands_entry_imports_nothing_before_it_can_be_interrupted() -> None:
    done = run(f"import sys; from sender.cli import main; print([name for name in {HEAVY} if name in sys.modules])")
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.parametrize("module", ["sender.errors", "sender.cli.root", "sender.settings"])
def test_ctrl_c_while_modules_are_imported_ends_the_command_without_a_traceback(module: str) -> None:
    code = f"""
import os, signal, sys
from importlib.abc import MetaPathFinder
class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["sender", "campaigns", "list"]
from sender.cli import main
main()
"""
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
