"""The checks in their order. Each runs whatever the ones before it found, unless it needs what they did not find."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

from sender.doctor import apns, servers, work
from sender.doctor.findings import Finding, Snapshot, Status, failed, skipped
from sender.errors import SenderError
from sender.settings import Settings

#: The checks that read a snapshot of the database.
CHECKS: tuple[Callable[[Snapshot, Settings], Iterator[Finding]], ...] = (
    lambda snapshot, settings: work.check_workers(snapshot, settings.lease),
    lambda snapshot, settings: work.check_worker_credentials(snapshot, settings.lease),
    lambda snapshot, settings: work.check_beat(snapshot),
    lambda snapshot, settings: work.check_clocks(snapshot, settings.lease),
    lambda snapshot, settings: work.check_pauses(snapshot),
    lambda snapshot, settings: apns.check_credentials(snapshot, settings.lease),
    lambda snapshot, settings: apns.check_reachable(settings, snapshot),
)


def examine(settings: Settings, *, push: bool = False) -> Iterator[Finding]:
    """Every finding, as it is made. With `push`, one push to a made-up token goes out per app and environment."""
    yield from servers.check_settings(settings)
    healthy = settings.database_url is not None
    if settings.database_url is not None:
        for finding in servers.check_database(settings):
            healthy &= finding.status is not Status.FAILED
            yield finding
    if settings.broker_url is not None:
        yield from servers.check_broker(settings)
    if not healthy:
        yield skipped("workers", "workers, beat, clocks, credentials and APNs: they need the database")
        return
    snapshot = servers.take_snapshot(settings)
    for check in CHECKS:
        yield from check(snapshot, settings)
    if push:
        yield from apns.check_push(settings, snapshot)


def examine_here(settings: Settings) -> Finding:
    """Whether a process on this host works or beats: the health check of a container."""
    try:
        return work.check_here(servers.take_snapshot(settings), settings.lease, socket.gethostname())
    except SenderError as error:
        return failed("here", str(error), "see `sender doctor`")
