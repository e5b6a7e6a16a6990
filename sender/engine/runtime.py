"""What one worker process has: settings, the database, one event loop with the APNs clients, the held claims, and a
heartbeat. Built lazily by the first task (worker_process_init never fires on the threads pool)."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from sender._version import __version__
from sender.apns.credentials import load_credential
from sender.apns.loop import EventLoopThread
from sender.engine.later import Later
from sender.engine.leases import Lease, Leases
from sender.engine.mishaps import survived
from sender.engine.protection.breaker import Breakers
from sender.engine.protection.guard import Guard, thresholds_of
from sender.engine.protection.healing import Healing
from sender.engine.protection.watching import Watcher
from sender.engine.sharing import Shares
from sender.engine.stopping import Stopping
from sender.engine.together import Together
from sender.engine.underway import Underway
from sender.errors import SchemaVersionError, SenderError
from sender.model import Answer, CredentialRef, NotProcessed, Push
from sender.policy.breaker import PROBE_MARGIN
from sender.policy.pace import SMALL
from sender.settings import Settings
from sender.store import schema, sending, workers
from sender.store.batches import Target
from sender.store.database import Database
from sender.store.limits import Limit, share_of

if TYPE_CHECKING:
    from sender.apns.clients import Clients
    from sender.apns.health import Health
    from sender.engine.preparing import Work
    from sender.engine.results import Results
    from sender.store.batches import Claim

log = structlog.get_logger()

#: Pushes between two looks at the stop flag.
SLICE = 64

#: Seconds after its grant at which a push under a limit is not issued any more: what had to wait for a stream asks
#: anew, so that no burst follows when there are streams again.
STALE = 0.5

#: Seconds between two heartbeats of the process, and between two checks that it can read the credentials.
HEARTBEAT = 3.0
CREDENTIAL_CHECK = 30.0


class Runtime:
    """The moving parts of one worker process."""

    def __init__(
        self,
        settings: Settings,
        *,
        role: str,
        clients: Clients | None = None,
        outdated: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.role = role
        self._outdated = outdated  # called once, when the schema is no longer the one that this version knows
        self.id = uuid4()
        self.database = Database(
            settings.require_database_url(),
            schema=settings.database_schema,
            pool_size=settings.database_pool_size + settings.worker_threads,
            name=f"sender {role}",
        )
        self.leases = Leases(self.database, length=settings.lease, installation_rate=settings.rate)
        self.shares = Shares(self.database, settings.rate)
        self.stopping = Stopping(settings.stop_timeout)
        self.healing = Healing()
        self.guard = Guard(
            thresholds_of(settings),
            stop=self.leases.stop_campaign,
            learn=self.healing.learn,
            know=self.healing.know,
        )
        self.breakers = Breakers(
            self.database,
            scale=settings.backoff_scale,
            probe_seconds=settings.apns_timeout + settings.apns_connect_timeout + PROBE_MARGIN,
        )
        self.watcher = Watcher(
            self.database,
            self.breakers,
            timeout=settings.apns_timeout,
            busy=lambda: self.leases.held > 0,
            health=self._health,
            revive=self._revive,
        )
        self._underway = Underway(self._may_send)
        self.claiming: Together[int, Work] = Together("claim")
        self.recording: Together[tuple[Claim, Results], dict[str, int]] = Together("record")
        self._large = threading.Semaphore(settings.worker_threads)
        self.later = Later()
        self._loop = EventLoopThread()
        self._clients = clients or _open_clients(settings)
        self._closing = threading.Event()
        self._faults: dict[str, str | None] = {}

    @property
    def urgent(self) -> bool:
        """Whether what this process sends does not wait behind campaigns."""
        return self.role == "priority"

    def share(self, campaign_id: int, limits: Sequence[Limit]) -> Sequence[Limit]:
        """What tells a campaign that has had its share of these limits from those that have not; none where it shares
        nothing, or has the limits to itself."""
        if self.urgent or not any(limit.shared for limit in limits):
            return ()
        rate = self.shares.of(campaign_id)
        return () if rate is None else (share_of(campaign_id, rate),)

    def place_for(self, devices: int) -> AbstractContextManager[object]:
        """A place to send a batch of so many devices from. Of large ones, few are sent at a time: whoever has claimed
        another waits here, as when a worker that was sending small ones comes upon several at once."""
        return nullcontext() if devices <= SMALL else self._large

    def start(self) -> None:
        """Start the heartbeats. The event loop and the connections start with the first push."""
        self.leases.start()
        threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True).start()
        threading.Thread(target=self.watcher.run, args=(self._closing,), name="watcher", daemon=True).start()

    def issue(self, credential: CredentialRef, pushes: Sequence[Push], lease: Lease) -> Future[list[Answer | None]]:
        """Start sending these pushes, for which there is leave now; the future has an answer for each, or None for what
        was not issued because the claim had to stop, or the leave was of long ago."""
        until = time.monotonic() + STALE if lease.limits() or self.breakers.pace(credential.identity) else inf
        return self._loop.submit(self._send(credential, pushes, lease, until))

    def heed(
        self, credentials: Mapping[str, CredentialRef], targets: Sequence[Target], answers: Sequence[Answer | None]
    ) -> None:
        """Have the answers of a batch count for or against its credentials (by environment)."""
        self.watcher.note({name: ref.identity for name, ref in credentials.items()}, targets, answers)

    def connect(self, credential: CredentialRef) -> None:
        """Wait until there is a connection to issue on, or none can be had: what waits for one after its grant would
        go out in a burst."""
        try:
            waiting = self._loop.submit(self._clients.connected(credential))
            waiting.result(timeout=self.settings.apns_connect_timeout)
        except (SenderError, TimeoutError) as error:  # the push itself will say so
            log.debug("no_connection_yet", credential=credential.identity, error=type(error).__name__)

    def renew_connections(self, credentials: Collection[CredentialRef]) -> None:
        """Have the next pushes with these credentials go out on new connections."""
        for credential in credentials:
            self._loop.submit(self._clients.renew(credential)).result(timeout=self.settings.stop_timeout)

    def stop_issuing(self) -> None:
        """Issue nothing more; what is in flight has `stop_timeout` seconds to get its answers. Does not wait: tasks
        return by themselves."""
        self.stopping.begin()
        self.leases.stop_issuing()
        log.info("issuing_stopped", answers_within=self.settings.stop_timeout)
        self._close_clients(self.settings.stop_timeout)

    def hurry(self) -> None:
        """Wait for no more answers: what has none is unknown. Tasks return as soon as they have written things down."""
        self.stopping.hurry()
        self.leases.stop_issuing()
        self._close_clients(0.0)

    def close(self) -> None:
        """Close the connections and end the heartbeats."""
        self._closing.set()
        self.leases.close()
        self.later.close()
        if (closed := self._close_clients(self.settings.stop_timeout)) is not None:
            closed.result()
            self._loop.stop()
        self._flush_guard(everything=True)
        with survived("retiring"), self.database.transaction() as transaction:
            workers.retire(transaction, self.id)
        self.database.close()

    def _close_clients(self, timeout: float) -> Future[None] | None:
        """Start closing the connections; None when there is no loop for any to be on."""
        return self._loop.submit(self._clients.close(timeout=timeout)) if self._loop.running else None

    async def _send(
        self, credential: CredentialRef, pushes: Sequence[Push], lease: Lease, until: float
    ) -> list[Answer | None]:
        try:
            client = self._clients.get(credential)
        except SenderError as error:
            log.warning("credential_unusable", credential=credential.identity, error=str(error))
            return [NotProcessed(cause=f"connect: {error}")] * len(pushes)
        if self.breakers.probes(credential.identity, lease.claim.owner):
            client.revive()
        waiting: list[Awaitable[list[Answer]]] = []
        answers: list[Answer | None] = []
        with self._underway.watch(lease, credential.identity, client, waiting):
            try:
                for start in range(0, len(pushes), SLICE):
                    await client.ready()
                    if time.monotonic() > until or not self._may_send(lease, credential.identity):
                        break
                    waiting.append(client.send(pushes[start : start + SLICE], timeout=self.settings.apns_timeout))
            except Exception:  # what went out before has answers, and they are facts
                log.exception("sending_broke", batch=lease.claim.batch_id, campaign=lease.claim.campaign.key)
            for part in waiting:
                answers += await part
        return answers + [None] * (len(pushes) - len(answers))

    def _may_send(self, lease: Lease, identity: str) -> bool:
        return lease.may_issue() and self.breakers.allows(identity, lease.claim.owner)

    def _health(self) -> dict[str, Health]:
        """The health of the clients, by identity; nothing while the event loop does not run, or is too busy to say."""
        if not self._loop.running:
            return {}

        async def look() -> dict[str, Health]:
            return self._clients.snapshots()

        try:
            return self._loop.submit(look()).result(timeout=1.0)
        except TimeoutError:
            return {}

    def _revive(self, identity: str) -> None:
        if self._loop.running:
            self._loop.loop().call_soon_threadsafe(self._clients.revive, identity)

    def _beat_forever(self) -> None:
        checked = 0
        while True:
            with survived("heartbeat"):
                try:
                    if checked == 0:
                        self._check_credentials()
                    checked = (checked + 1) % int(CREDENTIAL_CHECK / HEARTBEAT)
                    self._beat()
                except SchemaVersionError as error:
                    self._give_way(error)
            self._flush_guard()
            if self._closing.wait(HEARTBEAT):
                return

    def _flush_guard(self, *, everything: bool = False) -> None:
        with survived("guard_flush"):
            self.guard.flush(self.database, everything=everything)

    def _give_way(self, error: SchemaVersionError) -> None:
        """The schema was migrated under us: stop in order, for a process of the version that it is made for."""
        if not self.stopping.begun:
            log.error("schema_changed", error=str(error))
            self.stop_issuing()
            self._outdated()

    def _beat(self) -> None:
        with self.database.transaction() as transaction:
            schema.check(transaction)
            workers.beat(
                transaction,
                id=self.id,
                role=self.role,
                host=socket.gethostname(),
                pid=os.getpid(),
                version=__version__,
                clock=datetime.now(UTC),
                credentials=self._faults,
            )

    def _check_credentials(self) -> None:
        with self.database.transaction() as transaction:
            references = sending.all_credentials(transaction)
        self._faults = {reference.identity: _fault(reference) for reference in references}


def _open_clients(settings: Settings) -> Clients:
    from sender.apns.clients import Clients

    return Clients(settings)


def _fault(reference: CredentialRef) -> str | None:
    try:
        load_credential(reference)
    except SenderError as error:
        return str(error)
    return None
