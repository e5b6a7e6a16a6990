"""`sender up`: the whole stack in the foreground. Servers, migrations, workers, beat, Flower; watched until stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

import psutil
from kombu.connection import Connection
from pydantic import SecretStr

from sender.errors import (
    BrokerUnavailableError,
    DatabaseUnavailableError,
    SenderError,
    StackError,
)
from sender.settings import SERVERS_FILE, Settings
from sender.stack.children import Child, Children, find_leftovers
from sender.stack.commands import Command, Role, beat_command, check_extras, flower_command, worker_command
from sender.stack.datadir import DataDirectory
from sender.stack.flower import Flower, choose_flower
from sender.stack.launch import end_stranger
from sender.stack.logs import Logs
from sender.stack.postgres import CONNECTIONS, Postgres
from sender.stack.signals import Stopped, StopSignals
from sender.stack.valkey import Valkey
from sender.store import presence
from sender.store.database import Database
from sender.store.migrate import migrate

Say = Callable[[str], None]

STOP_MARGIN = 10.0  # seconds beyond settings.stop_timeout before a process that drains is killed
HURRY_MARGIN = 10.0  # seconds after a second signal before what has not ended is killed
LOOK_EVERY = 0.25  # seconds between two looks at the processes
HOPELESS = 3  # deaths of a process before `ready` after which starting is given up
TICK = "tick"
REMIND_EVERY = 15.0  # seconds between two lines that say what `ready` waits for


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `sender up` is asked to run."""

    workers: int
    flower: bool = True


def run_stack(settings: Settings, plan: Plan, say: Say) -> None:
    """Run the stack until a stop signal. Main thread only. Raises `SenderError` when it does not come up."""
    check_extras(flower=plan.flower)
    data = DataDirectory(settings.data_dir)
    data.create()
    with data.lock(), StopSignals() as signals:
        stack = Stack(settings, plan, data, signals, say)
        try:
            stack.start()
            stack.watch()
        except Stopped:
            pass
        finally:
            stack.stop()


class Stack:
    """One run of `sender up`; `start`, `watch` and `stop`, in this order."""

    def __init__(self, settings: Settings, plan: Plan, data: DataDirectory, signals: StopSignals, say: Say) -> None:
        self._given = settings
        self._settings = settings
        self._plan = plan
        self._data = data
        self._signals = signals
        self._say = say
        self._servers: list[Postgres | Valkey] = []
        self._children = Children(data)
        self._logs = Logs(data)
        self._flower: Flower | None = None

    def start(self) -> None:
        """Bring everything up, and say `ready`."""
        self._data.remove(SERVERS_FILE)
        self._end_leftovers()
        self._start_servers()
        self._check_broker()
        self._migrate()
        if self._plan.flower:
            self._flower = choose_flower(self._settings)
        self._publish()
        with self._database() as database:
            with database.transaction() as transaction:
                since = presence.now(transaction)
            for command in self._commands():
                self._children.start(command)
            self._wait_for_everybody(database, since)
        self._say(f"logs      {self._data.logs}")
        self._say("ready")

    def watch(self) -> None:
        """Restart what dies, until a stop signal."""
        while not self._signals.count:
            self._signals.sleep(LOOK_EVERY)
            self._tend()
            self._logs.tend()

    def stop(self) -> None:
        """Drain the processes, then stop the servers; at once when a second signal comes."""
        self._drain()
        self._data.remove(SERVERS_FILE)
        for server in reversed(self._servers):
            server.stop(now=self._signals.count > 1)
        self._children.forget()
        if self._signals.count:
            self._say("stopped")

    def _end_leftovers(self) -> None:
        leftovers = find_leftovers(self._data)
        if not leftovers:
            return
        self._say(f"ending {len(leftovers)} processes that an earlier run left behind")
        for process in leftovers:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in psutil.wait_procs(leftovers, timeout=self._given.stop_timeout + STOP_MARGIN)[1]:
            end_stranger(process)

    def _start_servers(self) -> None:
        found = {}
        if self._given.database_url is None:
            self._say("postgres  starting the embedded PostgreSQL")
            postgres = Postgres(self._data, connections=self._connections(), pause=self._signals.pause)
            found["database_url"] = self._start_server(postgres)
        if self._given.broker_url is None:
            self._say("valkey    starting the embedded Valkey")
            found["broker_url"] = self._start_server(Valkey(self._data, pause=self._signals.pause))
        self._settings = self._given.model_copy(
            update={name: SecretStr(url) for name, url in found.items()} | {"data_dir": self._data.path}
        )

    def _connections(self) -> int:
        """What every worker's pool may take at its largest, and as much as usual for everybody else."""
        each = self._given.database_pool_size + self._given.worker_threads
        return CONNECTIONS + (self._plan.workers + 2) * each

    def _start_server(self, server: Postgres | Valkey) -> str:
        self._servers.append(server)
        server.start()
        if not server.state.is_relative_to(self._data.path):
            self._say(f"{server.name:<9} has its state in {server.state}: its user cannot reach {self._data.path}")
        return server.url

    def _check_broker(self) -> None:
        """A broker that is not there would be waited for by every process, in silence."""
        url = self._settings.require_broker_url()
        try:
            with Connection(url, connect_timeout=5, transport_options={"socket_connect_timeout": 5}) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0.5)
        except Exception as error:
            raise BrokerUnavailableError(
                f"Redis does not answer ({str(error) or type(error).__name__}): check SENDER_BROKER_URL, or leave "
                "it out to run the embedded one"
            ) from None

    def _migrate(self) -> None:
        before = migrate(self._settings.require_database_url(), self._settings.database_schema)
        self._say(
            f"migrated  schema {self._settings.database_schema} "
            + ("is up to date" if before.up_to_date else f"from {before.current or 'nothing'} to {before.head}")
        )

    def _publish(self) -> None:
        """Tell `Sender()` and the command line in this directory where the servers are."""
        self._data.write(
            SERVERS_FILE,
            {
                "pid": os.getpid(),
                "database_url": self._settings.require_database_url(),
                "broker_url": self._settings.require_broker_url(),
                "flower_url": self._flower.url if self._flower else None,
            },
        )

    def _commands(self) -> list[Command]:
        settings = self._settings
        commands = [
            worker_command(settings, Role.CONTROL, name="control"),
            beat_command(settings),
        ]
        commands += [worker_command(settings, Role.PRIORITY, name="priority")]
        for number in range(1, self._plan.workers + 1):
            commands.append(worker_command(settings, Role.CAMPAIGN, name=f"campaign-{number}"))
        if self._flower:
            commands.append(flower_command(settings, port=self._flower.port, password=self._flower.password))
        return commands

    def _wait_for_everybody(self, database: Database, since: datetime) -> None:
        """Until every worker has beaten, the tick has run and Flower answers."""
        waiting = [child for child in self._children.all if child.command.role is not Role.BEAT]
        ticking = pulsed = False
        here: set[int] = set()
        remind_at = time.monotonic() + REMIND_EVERY
        while waiting or not ticking:
            if time.monotonic() > remind_at:
                names = [child.command.name for child in waiting] + ([] if ticking else ["beat"])
                self._say(f"still waiting for {', '.join(names)} (logs in {self._data.logs})")
                remind_at += REMIND_EVERY
            self._signals.pause(LOOK_EVERY)
            for child in self._tend():
                if child.deaths >= HOPELESS:
                    raise StackError(
                        f"{child.command.name} does not start; the end of {child.log}:\n{child.last_words()}"
                    )
            with contextlib.suppress(DatabaseUnavailableError), database.transaction() as transaction:
                here = presence.beaten_since(transaction, since, [child.pid or 0 for child in waiting])
                pulsed = presence.pulsed_since(transaction, since, TICK)
            if pulsed and not ticking:
                self._say("beat      ticking")
            ticking = ticking or pulsed
            for child in [child for child in waiting if self._is_here(child, here)]:
                waiting.remove(child)
                self._announce(child)

    def _is_here(self, child: Child, here: set[int]) -> bool:
        if child.command.role is Role.FLOWER:
            return self._flower is not None and self._flower.answers()
        return child.pid in here

    def _announce(self, child: Child) -> None:
        if child.command.role is not Role.FLOWER or not self._flower:
            self._say(f"worker    {child.command.name} (process {child.pid})")
            return
        secret = "as configured" if self._settings.flower_password else self._flower.password
        self._say(f"flower    {self._flower.url}  user {self._settings.flower_user}  password {secret}")

    def _tend(self) -> list[Child]:
        """One look at everything: servers first, since the processes need them."""
        for server in self._servers:
            if not server.alive():
                self._revive(server)
        died = self._children.tend()
        for child in died:
            status = child.process.returncode if child.process else None
            words = child.last_words().splitlines()[-3:]
            self._say(
                f"{child.command.name} ended with status {status}, restarting" + "".join(f"\n  {w}" for w in words)
            )
        return died

    def _revive(self, server: Postgres | Valkey) -> None:
        before = server.url
        self._say(f"{server.name} ended, restarting")
        try:
            server.start()
        except SenderError as error:
            self._say(f"{server.name} does not start: {error}")
            self._signals.sleep(5)
            return
        if server.url != before:  # another program took the port meanwhile
            name = "database_url" if isinstance(server, Postgres) else "broker_url"
            self._settings = self._settings.model_copy(update={name: SecretStr(server.url)})
            self._publish()
            self._children.replace(self._commands())
        self._say(f"{server.name} is back")

    def _drain(self) -> None:
        if not self._children.living():
            return
        self._say("stopping: waiting for what is on its way (again Ctrl-C: at once)")
        self._children.signal(signal.SIGTERM)
        self._wait_for_ends(self._settings.stop_timeout + STOP_MARGIN, until=2)
        if self._signals.count > 1:  # they write down what they know, and end
            self._children.signal(signal.SIGTERM)
            self._wait_for_ends(HURRY_MARGIN, until=3)
        for child in self._children.living():
            if self._signals.count < 3:
                self._say(f"{child.command.name} did not stop in time and is killed")
        self._children.signal(signal.SIGKILL)
        for child in self._children.all:
            if child.process is not None:
                child.process.wait()

    def _wait_for_ends(self, seconds: float, *, until: int) -> None:
        """Until every process has ended, the time is up, or the signal number `until` has come."""
        deadline = time.monotonic() + seconds
        while self._children.living() and time.monotonic() < deadline and self._signals.count < until:
            self._signals.sleep(0.1)

    @contextmanager
    def _database(self) -> Iterator[Database]:
        database = Database(
            self._settings.require_database_url(), schema=self._settings.database_schema, pool_size=1, name="sender up"
        )
        try:
            yield database
        finally:
            database.close()
