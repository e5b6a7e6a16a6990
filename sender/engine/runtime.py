"""What one worker process has: settings, the database, one event loop with the APNs clients, the held claims, and a
heartbeat. Built lazily by the first task (worker_process_init never fires on the threads pool)."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from sender._version import __version__
from sender.apns.credentials import load_credential
from sender.apns.loop import EventLoopThread
from sender.engine.guard import Guard, thresholds_of
from sender.engine.healing import Healing
from sender.engine.leases import Lease, Leases
from sender.engine.stopping import Stopping
from sender.errors import DatabaseUnavailableError, SenderError
from sender.model import Answer, CredentialRef, NotProcessed, Push
from sender.settings import Settings
from sender.store import sending, workers
from sender.store.database import TRANSIENT, Database

if TYPE_CHECKING:
    from sender.apns.clients import Clients

log = structlog.get_logger()

#: Pushes between two looks at the stop flag.
SLICE = 64

#: Seconds between two heartbeats of the process, and between two checks that it can read the credentials.
HEARTBEAT = 3.0
CREDENTIAL_CHECK = 30.0


class Runtime:
    """The moving parts of one worker process."""

    def __init__(self, settings: Settings, *, role: str, clients: Clients | None = None) -> None:
        self.settings = settings
        self.role = role
        self.id = uuid4()
        self.database = Database(
            settings.require_database_url(),
            schema=settings.database_schema,
            pool_size=settings.database_pool_size + settings.worker_threads,
            name=f"sender {role}",
        )
        self.leases = Leases(self.database, length=settings.lease, installation_rate=settings.rate)
        self.stopping = Stopping(settings.stop_timeout)
        self.guard = Guard(thresholds_of(settings), stop=self.leases.stop_campaign)
        self.healing = Healing()
        self._loop = EventLoopThread()
        self._clients = clients or _open_clients(settings)
        self._closing = threading.Event()
        self._faults: dict[str, str | None] = {}

    def start(self) -> None:
        """Start the heartbeats. The event loop and the connections start with the first push."""
        self.leases.start()
        threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True).start()

    def issue(self, credential: CredentialRef, pushes: Sequence[Push], lease: Lease) -> Future[list[Answer | None]]:
        """Start sending these pushes; the future has an answer for each, or None for what was not issued because the
        claim had to stop."""
        return self._loop.submit(self._send(credential, pushes, lease))

    def renew_connections(self, credentials: Collection[CredentialRef]) -> None:
        """Have the next pushes with these credentials go out on new connections."""
        for credential in credentials:
            self._loop.submit(self._clients.renew(credential)).result(timeout=self.settings.stop_timeout)

    def stop_issuing(self) -> None:
        """Issue nothing more; what is in flight gets its answers. Does not wait: tasks return by themselves."""
        self.leases.stop_issuing()

    def close(self) -> None:
        """Close the connections and end the heartbeats."""
        self._closing.set()
        self.leases.close()
        if self._loop.running:
            self._loop.submit(self._clients.close(timeout=self.settings.stop_timeout)).result()
            self._loop.stop()
        self._flush_guard(everything=True)
        try:
            with self.database.transaction() as transaction:
                workers.retire(transaction, self.id)
        except (*TRANSIENT, DatabaseUnavailableError):
            log.warning("retire_failed", worker=str(self.id))
        self.database.close()

    async def _send(self, credential: CredentialRef, pushes: Sequence[Push], lease: Lease) -> list[Answer | None]:
        try:
            client = self._clients.get(credential)
        except SenderError as error:
            log.warning("credential_unusable", credential=credential.identity, error=str(error))
            return [NotProcessed(cause=f"connect: {error}")] * len(pushes)
        waiting = []
        try:
            for start in range(0, len(pushes), SLICE):
                await client.ready()
                if not lease.may_issue():
                    break
                waiting.append(client.send(pushes[start : start + SLICE], timeout=self.settings.apns_timeout))
        except Exception:  # what went out before has answers, and they are facts
            log.exception("sending_broke", batch=lease.claim.batch_id, campaign=lease.claim.campaign.key)
        answers: list[Answer | None] = []
        for part in waiting:
            answers += await part
        return answers + [None] * (len(pushes) - len(answers))

    def _beat_forever(self) -> None:
        checked = 0
        while True:
            try:
                if checked == 0:
                    self._check_credentials()
                checked = (checked + 1) % int(CREDENTIAL_CHECK / HEARTBEAT)
                self._beat()
            except (*TRANSIENT, DatabaseUnavailableError) as error:
                log.warning("heartbeat_failed", error=type(error).__name__)
            except Exception:
                log.exception("heartbeat_broke")
            self._flush_guard()
            if self._closing.wait(HEARTBEAT):
                return

    def _flush_guard(self, *, everything: bool = False) -> None:
        try:
            self.guard.flush(self.database, everything=everything)
        except (*TRANSIENT, DatabaseUnavailableError) as error:
            log.warning("guard_flush_failed", error=type(error).__name__)
        except Exception:
            log.exception("guard_flush_broke")

    def _beat(self) -> None:
        with self.database.transaction() as transaction:
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
