"""`sender migrate [--check] [--json]` as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def migrate(postgres_url: str, tmp_path: Path) -> Iterator[Run]:
    """Runs `sender migrate` on an empty schema's name."""
    schema = f"test_{uuid.uuid4().hex[:12]}"
    environment = {**os.environ, "SENDER_DATABASE_URL": postgres_url, "SENDER_DATABASE_SCHEMA": schema}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [Path(sys.executable).with_name("sender"), "migrate", *arguments],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
        )

    yield run
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def test_check_says_what_to_do_until_migrate_was_run(migrate: Run) -> None:
    before = migrate("--check")
    assert before.returncode == 1
    assert "run `sender migrate`" in before.stdout
    done = migrate()
    assert done.returncode == 0, done.stderr
    assert "from nothing to" in done.stdout
    after = migrate("--check")
    assert after.returncode == 0
    assert "up to date" in after.stdout


def test_json_says_the_same_to_programs(migrate: Run) -> None:
    before = migrate("--check", "--json")
    assert before.returncode == 1
    assert json.loads(before.stdout)["up_to_date"] is False
    done = json.loads(migrate("--json").stdout)
    assert done["changed"] is True and done["current"] == done["head"] and done["before"] is None
    again = migrate("--json")
    assert json.loads(again.stdout)["changed"] is False
    assert again.returncode == 0


def test_a_database_that_does_not_answer_is_one_clear_line(migrate: Run) -> None:
    done = migrate("--check", SENDER_DATABASE_URL="postgresql://u:hidden@127.0.0.1:1/d")
    assert done.returncode == 1
    assert "does not answer" in done.stderr
    assert "Traceback" not in done.stderr and "hidden" not in done.stderr


def test_without_a_database_both_remedies_are_named(migrate: Run) -> None:
    done = migrate(SENDER_DATABASE_URL="")
    assert done.returncode == 2
    assert "SENDER_DATABASE_URL" in done.stderr and "sender up" in done.stderr
