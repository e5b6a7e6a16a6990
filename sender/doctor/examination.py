"""The checks in their order. Each runs whatever the ones before it found, unless it needs what they did not find."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Mapping

from sender.doctor import apns, servers, storage, work
from sender.doctor.findings import Finding, Snapshot, Status, skipped
from sender.settings import Settings

#: The checks that read a snapshot of the database, by the name that their findings carry.
CHECKS: Mapping[str, Callable[[Snapshot, Settings], Iterator[Finding]]] = {
    "workers": lambda snapshot, settings: work.check_workers(snapshot, settings.lease),
    "beat": lambda snapshot, settings: work.check_beat(snapshot),
    "clock": lambda snapshot, settings: work.check_clocks(snapshot, settings.lease),
    "apps": lambda snapshot, settings: work.check_pauses(snapshot),
    "storage": lambda snapshot, settings: storage.check_storage(settings),
    "credentials": lambda snapshot, settings: apns.check_credentials(snapshot, settings.lease),
    "apns": lambda snapshot, settings: apns.check_reachable(settings, snapshot),
}
#: Those that run only when they are asked for.
ASKED: Mapping[str, Callable[[Snapshot, Settings], Iterator[Finding]]] = {
    "push": lambda snapshot, settings: apns.check_push(settings, snapshot),
    "here": lambda snapshot, settings: work.check_here(snapshot, settings.lease, socket.gethostname()),
}
#: What `--only` takes.
NAMES = ("settings", "database", "broker", *CHECKS, *ASKED)


def examine(settings: Settings, *, push: bool = False, only: Collection[str] = ()) -> Iterator[Finding]:
    """Every finding, as it is made.

    With `push`, one push to a made-up token goes out per app and environment. With `only`, the checks of those names
    alone run, and what fails before them is told.
    """
    names = only or {"settings", "database", "broker", *CHECKS, *({"push"} if push else ())}
    healthy = settings.database_url is not None
    for finding in _servers(settings, names):
        healthy &= finding.status is not Status.FAILED or finding.check not in {"database", "migrations"}
        if finding.status is Status.FAILED or not only or finding.check in names:
            yield finding
    wanted = {name: check for name, check in {**CHECKS, **ASKED}.items() if name in names}
    if not healthy:
        yield from (skipped(name, "needs the database") for name in wanted)
        return
    if wanted:
        snapshot = servers.take_snapshot(settings)
        for check in wanted.values():
            yield from check(snapshot, settings)


def _servers(settings: Settings, names: Collection[str]) -> Iterator[Finding]:
    yield from servers.check_settings(settings)
    if settings.database_url is not None:
        yield from servers.check_database(settings)
    if settings.broker_url is not None and "broker" in names:
        yield from servers.check_broker(settings)
