"""A worker with a scripted APNs, and the steps of the flow called one by one: what the engine's tests share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from sender.apns.health import Health
from sender.client import Sender
from sender.engine.delivery import send_batch
from sender.engine.fanout import LEAST_READY, cut_campaign
from sender.engine.runtime import Runtime
from sender.engine.sweep import Sweeper
from sender.engine.tick import tick
from sender.model import ACCEPTED, Answer, CredentialRef, Environment, Push
from sender.payload import Alert, Payload
from sender.settings import Settings
from sender.store import apps
from sender.store.database import Database

BUNDLE = "com.example.news"


def token_of(number: int) -> str:
    return f"{number:064x}"


class ScriptedClient:
    """A `PushClient` that answers as it is told, and remembers what it was sent."""

    def __init__(self, script: Callable[[Push], Answer]) -> None:
        self.script = script
        self.pushes: list[Push] = []

    def send(self, pushes: Sequence[Push], *, timeout: float) -> asyncio.Future[list[Answer]]:
        self.pushes += pushes
        future = asyncio.get_running_loop().create_future()
        future.set_result([self.script(push) for push in pushes])
        return future

    async def ready(self) -> None:
        await asyncio.sleep(0)

    def recall(self, sent: Collection[Awaitable[list[Answer]]]) -> int:
        return 0

    def revive(self) -> None:
        pass

    async def close(self, *, timeout: float) -> None:
        pass


class ScriptedClients:
    """The registry of one `ScriptedClient` for every credential."""

    def __init__(self) -> None:
        self.client = ScriptedClient(lambda push: ACCEPTED)
        self.sandbox: ScriptedClient | None = None  # another one for that environment
        self.renewed = 0
        self.revived: list[str] = []
        self.health: dict[str, Health] = {}

    def get(self, credential: CredentialRef) -> ScriptedClient:
        if self.sandbox is not None and credential.environment is Environment.SANDBOX:
            return self.sandbox
        return self.client

    async def connected(self, credential: CredentialRef) -> None:
        pass

    async def renew(self, credential: CredentialRef) -> None:
        self.renewed += 1

    def revive(self, identity: str) -> None:
        self.revived.append(identity)

    def snapshots(self) -> dict[str, Health]:
        return self.health

    async def close(self, *, timeout: float) -> None:
        pass


class Engine:
    """One app with devices, one worker, and a queue that is a list."""

    def __init__(self, settings: Settings, database: Database, sender: Sender) -> None:
        self.settings = settings
        self.database = database
        self.sender = sender
        self.apns = ScriptedClients()
        self.runtime = Runtime(settings, role="campaign", clients=self.apns)  # type: ignore[arg-type]
        self.queue: list[int] = []
        self.sweeper = Sweeper()

    @property
    def received(self) -> Counter[str]:
        """How often each token was pushed to."""
        return Counter(push.token for push in self.apns.client.pushes)

    def answer(self, script: Callable[[Push], Answer]) -> None:
        self.apns.client.script = script

    def add_app(self) -> None:
        with self.database.transaction() as transaction:
            app_id = apps.add(transaction, BUNDLE)
            transaction.execute(
                "INSERT INTO {s}.credentials (app_id, environment, kind, file, team_id, key_id) "
                "SELECT %s, unnest(ARRAY['production', 'sandbox']), 'key', '/nowhere.p8', 'TEAM123456', 'KEY1234567'",
                (app_id,),
            )

    def add_devices(
        self, count: int, *, registered_at: datetime | None = None, environment: str = "production"
    ) -> None:
        with self.database.transaction() as transaction:
            transaction.execute(
                "INSERT INTO {s}.devices (app_id, token, environment, registered_at) "
                "SELECT a.id, lpad(to_hex(n), 64, '0'), %s, %s FROM {s}.apps a, generate_series(1, %s) AS n "
                "WHERE a.bundle_id = %s",
                (environment, registered_at, count, BUNDLE),
            )

    def enqueue(self, key: str = "hello", *, app: str = BUNDLE, **options: Any) -> Any:
        options.setdefault("rate", None)
        return self.sender.campaigns.enqueue(
            app, key=key, payload=Payload(alert=Alert(title="Hello", body="World")), **options
        )

    def publish(self, campaign: str, batches: Sequence[int], urgent: bool) -> None:
        self.queue += batches

    def start(self) -> None:
        """Start what is due and cut what runs."""
        for campaign_id, _ in tick(self.database):
            turn = cut_campaign(
                self.database, campaign_id, self.publish, stopped=lambda: len(self.queue) >= LEAST_READY
            )
            if not turn.finished:  # as the task does, which asks for its next turn itself
                with self.database.transaction() as transaction:
                    transaction.execute("UPDATE {s}.campaigns SET fanout_until = NULL WHERE id = %s", (campaign_id,))

    def work(self) -> list[dict[str, int | str]]:
        """Send everything that is queued."""
        done = []
        while self.queue:
            done.append(send_batch(self.runtime, self.queue.pop(0)))
        return done

    def sweep(self) -> None:
        self.sweeper.run(self.database, self.settings, self.publish, lambda: len(self.queue))

    def run(self, rounds: int = 50) -> None:
        """Go round until nothing is left to do: start, work, sweep."""
        for _ in range(rounds):
            self.start()
            self.work()
            self.sweep()
            if not self.queue and not self.rows("SELECT FROM {s}.campaigns WHERE finished_at IS NULL"):
                return

    def bring_forward(self) -> None:
        """Have everything that waits be due now."""
        with self.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.retries SET due_at = now()")
            transaction.execute("UPDATE {s}.batches SET due_at = NULL")
            transaction.execute("UPDATE {s}.breakers SET until = now()")
            transaction.execute("UPDATE {s}.devices SET blocklisted_until = now() WHERE blocklisted_until IS NOT NULL")

    def bring_batches_forward(self) -> None:
        """Have the batches that wait be due now, and published."""
        with self.database.transaction() as transaction:
            transaction.execute("UPDATE {s}.batches SET due_at = NULL")
        self.sweep()

    def rows(self, statement: str, params: Any = None) -> list[Any]:
        with self.database.transaction() as transaction:
            return transaction.execute(statement, params).fetchall()

    def now(self) -> datetime:
        """The time by the database's clock."""
        ((moment,),) = self.rows("SELECT clock_timestamp()")
        return moment  # type: ignore[no-any-return]

    def outcomes(self) -> dict[str, int]:
        return dict(self.rows("SELECT outcome, count(*) FROM {s}.deliveries GROUP BY outcome"))

    def states(self) -> dict[str, int]:
        return dict(self.rows("SELECT state, count(*) FROM {s}.devices GROUP BY state"))

    def report(self, key: str = "hello") -> Any:
        report = self.sender.campaigns.show(key)
        parts = (
            report.sent
            + report.rejected
            + report.retrying
            + report.skipped
            + report.expired
            + report.unknown
            + report.cancelled
            + report.failed
            + report.pending
            + report.in_flight
        )
        assert parts == report.audience, report
        return report


@contextmanager
def engine_on(settings: Settings, database: Database, sender: Sender) -> Iterator[Engine]:
    engine = Engine(settings, database, sender)
    engine.add_app()
    yield engine
    engine.runtime.close()
