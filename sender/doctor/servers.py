"""Settings, PostgreSQL with its migrations, and the broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from kombu.connection import Connection

from sender.doctor.findings import Finding, Snapshot, failed, ok, warning
from sender.errors import SenderError
from sender.settings import Settings, unknown_variables
from sender.store import health
from sender.store.database import Database
from sender.store.health import ServerHealth
from sender.store.migrate import MigrationStatus
from sender.store.migrate import status as migration_status

#: Seconds that each server has to answer.
PATIENCE = 5.0

#: The share of PostgreSQL's connections in use that is worth a word.
CROWDED = 0.85

_EVICTION = (
    "set `maxmemory-policy noeviction` in its configuration: an evicted queue is lost until sweep publishes again"
)


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Whether both servers are known, and no variable is misspelt."""
    for name in unknown_variables():
        yield warning("settings", f"{name} is not a setting", "correct its name (docs/settings.md), or remove it")
    missing = []
    for ask in (settings.require_database_url, settings.require_broker_url):
        try:
            ask()
        except SenderError as error:
            missing.append(failed("settings", *_split(error)))
    yield from missing or [ok("settings", f"read; schema {settings.database_schema}, queues {settings.queue_prefix}.*")]


def check_database(settings: Settings) -> Iterator[Finding]:
    """Whether PostgreSQL answers, and has this version's tables."""
    url, schema = settings.require_database_url(), settings.database_schema
    try:
        status = migration_status(url, schema)  # connects without a pool: its error names the cause at once
        database = _database(settings)
        try:
            started = time.monotonic()
            with database.transaction() as transaction:
                server = health.server(transaction)
            took = (time.monotonic() - started) * 1000
        finally:
            database.close()
    except SenderError as error:
        yield failed("database", *_split(error))
        return
    yield ok("database", f"PostgreSQL {server.version} answers in {took:.0f} ms")
    yield _migrations(status, schema)
    yield _connections(server)


def _connections(server: ServerHealth) -> Finding:
    message = f"{server.connections} of {server.most_connections} connections are in use"
    if server.connections < CROWDED * server.most_connections:
        return ok("database", message)
    return warning(
        "database",
        message,
        "raise max_connections, lower SENDER_DATABASE_POOL_SIZE, or put PgBouncer in between (docs/deployment.md)",
    )


def _database(settings: Settings) -> Database:
    return Database(
        settings.require_database_url(),
        schema=settings.database_schema,
        pool_size=1,
        timeout=PATIENCE,
        name="sender doctor",
        any_version=True,
    )


def _migrations(status: MigrationStatus, schema: str) -> Finding:
    if status.up_to_date:
        return ok("migrations", f"schema {schema} is at {status.head}")
    if not status.known:
        return failed(
            "migrations",
            f"schema {schema} is at {status.current}, which this version does not know",
            "upgrade apns-campaign-sender on this host, or point SENDER_DATABASE_SCHEMA at another schema",
        )
    at = f"is at {status.current}, and this version needs {status.head}" if status.current else "is empty"
    return failed("migrations", f"schema {schema} {at}", "run `sender migrate`")


def take_snapshot(settings: Settings) -> Snapshot:
    """What the database says of the installation. Raises `SenderError` when it cannot be read."""
    database = _database(settings)
    try:
        with database.transaction() as transaction:
            before = datetime.now(UTC)
            server = health.server(transaction)
            after = datetime.now(UTC)
            middle = before + (after - before) / 2
            return Snapshot(
                taken_at=after,
                ahead_by=(middle - server.now).total_seconds(),
                workers=health.workers(transaction),
                pulses=health.pulses(transaction),
                apps=health.apps(transaction),
                breakers=health.credentials(transaction),
            )
    finally:
        database.close()


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Whether the broker answers, and never throws a message away to save memory."""
    options = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE, "retry_on_timeout": False}
    try:
        with Connection(settings.require_broker_url(), transport_options=options) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, timeout=PATIENCE)
            if connection.transport.driver_type != "redis":
                yield ok("broker", f"{connection.transport.driver_type} answers")
                return
            client = connection.default_channel.client
            yield from _redis(client.info("server"), client.info("memory"))
    except SenderError as error:
        yield failed("broker", *_split(error))
    except Exception as error:  # kombu's and redis's errors have no common base
        yield failed(
            "broker",
            f"it does not answer: {_plain(error, settings)}",
            "check SENDER_BROKER_URL and that it runs; campaigns are kept, and go on when it is back",
        )


def _redis(server: dict[str, Any], memory: dict[str, Any]) -> Iterator[Finding]:
    name = f"Valkey {server['valkey_version']}" if "valkey_version" in server else f"Redis {server['redis_version']}"
    yield ok("broker", f"{name} answers")
    policy, limit = str(memory.get("maxmemory_policy", "unknown")), int(memory.get("maxmemory", 0))
    if policy == "noeviction":
        yield ok("eviction", "noeviction" + (f", at most {limit / 2**20:.0f} MiB" if limit else ""))
    elif limit:
        yield failed("eviction", f"the policy is {policy}: when it is full, it throws messages away", _EVICTION)
    else:
        yield warning("eviction", f"the policy is {policy}; nothing is evicted while maxmemory is 0", _EVICTION)
    used = int(memory.get("used_memory", 0))
    if limit and used > 0.9 * limit:
        yield failed(
            "memory",
            f"{used / 2**20:.0f} of {limit / 2**20:.0f} MiB are in use",
            "raise its maxmemory, or see what else lives in it: this sender needs a few MiB",
        )


def _plain(error: BaseException, settings: Settings) -> str:
    """The error's first line, without the broker's password should a library have put it in."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.replace(settings.require_broker_url(), "SENDER_BROKER_URL")


def _split(error: SenderError) -> tuple[str, str]:
    """(what is wrong, what to do): our messages say both, parted by a colon or a semicolon before the remedy."""
    text = str(error)
    for mark in ("; check ", "; raise ", ": set ", ": run "):
        what, found, remedy = text.partition(mark)
        if found:
            return what, f"{found.lstrip(';: ')}{remedy}"
    return text, "see docs/settings.md"
