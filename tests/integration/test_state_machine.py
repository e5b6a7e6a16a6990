"""Random interleavings of commands, results and crashes: whatever comes in whatever order, the promises are kept."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as how
from hypothesis.stateful import run_state_machine_as_test

from sender.client import Sender
from sender.settings import Settings
from sender.store.database import Database
from tests.integration.engine import Engine
from tests.integration.machine_rules import Machine

#: More of them look further: STATE_MACHINE_EXAMPLES=1000 draws as many, others every time.
MORE = int(os.environ.get("STATE_MACHINE_EXAMPLES", "0"))
EXAMPLES, STEPS = 15, 40

#: Everything but the schema's own version.
_EMPTY = """
TRUNCATE {s}.apps, {s}.credentials, {s}.users, {s}.devices, {s}.changelog, {s}.campaigns, {s}.batches, {s}.retries,
    {s}.deliveries, {s}.limits, {s}.breakers, {s}.trials, {s}.reservations, {s}.staged, {s}.baselines, {s}.intents
"""


@pytest.mark.timeout(max(300, 10 * MORE))
def test_commands_results_and_crashes_in_any_order_keep_every_promise(
    settings: Settings, database: Database, sender: Sender
) -> None:
    def make() -> Engine:
        with database.transaction() as transaction:
            transaction.execute(_EMPTY)
        return Engine(settings, database, sender)

    run_state_machine_as_test(
        lambda: Machine(make),
        settings=how(
            max_examples=MORE or EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=not MORE,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
