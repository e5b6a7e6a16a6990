"""The whole stack, started once for the module as a user starts it, against a simulator that behaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sender.errors import MissingExtraError
from sender.rehearsal import BUNDLE_ID, KEY_ID, TEAM_ID, Rehearsal
from sender.simulator import Scenario

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def stack() -> Iterator[Rehearsal]:
    """`sender up` with Flower and two workers, an app, and a simulator that accepts everything."""
    try:
        with Rehearsal(scenario=Scenario(seed=1), flower=True, environment={"SENDER_FLOWER_PORT": "0"}) as stack:
            stack.sender.apps.add(BUNDLE_ID, team_id=TEAM_ID, key_id=KEY_ID, key_file=stack.key_file)
            yield stack
    except MissingExtraError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def cli(stack: Rehearsal) -> Cli:
    """Runs a `sender` command as a user of this stack would."""

    def run(*arguments: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-c", "from sender.cli import main; main()", *arguments],
            env=stack.environment,
            cwd=stack.directory,
            capture_output=True,
            text=True,
            input=input,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def show(cli: Cli) -> Callable[[str], dict[str, Any]]:
    """`sender campaigns show KEY --json`, whose counts must add up."""

    def read(key: str) -> dict[str, Any]:
        done = cli("campaigns", "show", key, "--json")
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        parts = ("sent", "rejected", "retrying", "skipped", "expired", "unknown", "cancelled", "failed", "pending")
        assert sum(report[part] for part in (*parts, "in_flight")) == report["audience"], report
        return report

    return read
