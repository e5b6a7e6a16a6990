"""Who works, what ticks, whose clock is wrong, what is paused or rests: all from heartbeat rows, none of it from
Celery's `inspect`, which stays deaf after the broker was emptied."""

from __future__ import annotations

from collections.abc import Iterator

from sender._version import __version__
from sender.doctor.findings import Finding, Snapshot, failed, ok, warning
from sender.policy.outcomes import RULES
from sender.policy.states import AppState
from sender.store.health import AppHealth, WorkerHealth

ROLES = ("campaign", "priority", "control")
EVERY_ROLE = ("all", "worker")  # of one process that serves all the queues

#: Seconds after which a periodic job is late: beat sends both every second.
LATE = {"tick": 15.0, "sweep": 30.0}

#: Seconds of difference between clocks that are worth a word, and that stop provider tokens from being accepted.
SKEW_NOTED, SKEW_WRONG = 5.0, 60.0

_NTP = "set the clock right (NTP): APNs refuses provider tokens that are too old or from the future"


def alive(snapshot: Snapshot, lease: float) -> list[WorkerHealth]:
    """The processes with a heartbeat within a lease (seconds)."""
    return [worker for worker in snapshot.workers if worker.silent_for <= lease]


def check_workers(snapshot: Snapshot, lease: float) -> Iterator[Finding]:
    """Whether each role has a live worker, all of this version and able to read the credentials."""
    yield from _check_presence(snapshot, lease)
    yield from _check_worker_credentials(snapshot, lease)


def _check_presence(snapshot: Snapshot, lease: float) -> Iterator[Finding]:
    living = alive(snapshot, lease)
    for role in ROLES:
        count = sum(worker.role in (role, *EVERY_ROLE) for worker in living)
        if count:
            yield ok("workers", f"{count} {role} worker{'s' * (count != 1)} alive")
        else:
            yield failed("workers", f"no {role} worker is alive", f"start one: `sender worker --role {role}`")
    for worker in snapshot.workers:
        if worker not in living:
            yield warning(
                "workers",
                f"{worker.name} was last seen {_ago(worker.silent_for)}",
                "nothing to do when it was stopped: sweep forgets it; else look at its log",
            )
        elif worker.version != __version__:
            yield warning(
                "workers",
                f"{worker.name} runs version {worker.version}, this is {__version__}",
                "restart it with the same version",
            )


def _check_worker_credentials(snapshot: Snapshot, lease: float) -> Iterator[Finding]:
    refs = {ref.identity: (app.bundle_id, ref) for app in snapshot.apps for ref in app.credentials}
    for worker in alive(snapshot, lease):
        readable = 0
        for identity, fault in worker.credentials.items():
            if identity not in refs:
                continue
            bundle_id, ref = refs[identity]
            if fault is None:
                readable += 1
                continue
            yield failed(
                "workers",
                f"{worker.name} cannot read the {ref.environment} credential of {bundle_id}: {fault}",
                f"put {ref.file} on its host, readable by its user",
            )
        if readable:
            yield ok("workers", f"{worker.name} can read {readable} of {len(refs)} credentials")


def check_beat(snapshot: Snapshot) -> Iterator[Finding]:
    """Whether the periodic jobs run."""
    for name, late in LATE.items():
        seconds = snapshot.pulses.get(name)
        if seconds is not None and seconds <= late:
            yield ok("beat", f"{name} ran {_ago(seconds)}")
            continue
        ran = "has never run" if seconds is None else f"last ran {_ago(seconds)}"
        yield failed(
            "beat", f"{name} {ran}", "start `sender beat`, and a control worker: `sender worker --role control`"
        )


def check_clocks(snapshot: Snapshot, lease: float) -> Iterator[Finding]:
    """Whether the clocks of this machine and of the workers agree with the database's."""
    yield _clock("this machine", snapshot.ahead_by)
    for worker in alive(snapshot, lease):
        if worker.ahead_by is not None and abs(worker.ahead_by) > SKEW_NOTED:
            yield _clock(worker.name, worker.ahead_by)


def _clock(whose: str, ahead_by: float) -> Finding:
    if abs(ahead_by) <= SKEW_NOTED:
        return ok("clock", f"{whose} and the database agree within {max(abs(ahead_by), 0.1):.1f} s")
    side = "ahead of" if ahead_by > 0 else "behind"
    message = f"{whose} is {abs(ahead_by):.0f} s {side} the database"
    return (failed if abs(ahead_by) > SKEW_WRONG else warning)("clock", message, _NTP)


def check_pauses(snapshot: Snapshot) -> Iterator[Finding]:
    """Which apps are paused and which credentials rest. A pause that APNs caused is a failure; a person's is not."""
    reasons = {rule.reason for rule in RULES}
    for app in snapshot.apps:
        if app.state != AppState.PAUSED:
            continue
        message = f"{app.bundle_id} is paused since {app.state_changed_at:%Y-%m-%d %H:%M %Z}"
        by_system = (app.state_reason or "").partition(":")[0] in reasons
        advice = app.state_reason or "resume it when it should send again"
        yield (failed if by_system else warning)("apps", message, advice)
    for breaker in snapshot.breakers:
        bundle_ids = [app.bundle_id for app in snapshot.apps if breaker.credential in _identities(app)]
        if not bundle_ids:  # of an app that is gone
            continue
        advice = "nothing to do: it climbs back by itself while something is sent"
        if not breaker.closed:
            advice = f"nothing to do, or, if you know that APNs is well: `sender apps close-breaker {bundle_ids[0]}`"
        yield warning("apps", f"credential {breaker.credential} {breaker.in_words()}", advice)


def _identities(app: AppHealth) -> set[str]:
    return {ref.identity for ref in app.credentials}


def check_here(snapshot: Snapshot, lease: float, host: str) -> Iterator[Finding]:
    """Whether a worker on this host has a fresh heartbeat: the health check of a container."""
    here = [worker for worker in snapshot.workers if worker.host == host]
    for worker in here:
        if worker.silent_for <= lease:
            yield ok("here", f"{worker.name} was seen {_ago(worker.silent_for)}")
            return
    seen = min((worker.silent_for for worker in here), default=None)
    message = f"no worker on {host} has a heartbeat" if seen is None else f"{host} was last seen {_ago(seen)}"
    yield failed("here", message, "look at its log, or restart it")


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(seconds, 0):.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"
