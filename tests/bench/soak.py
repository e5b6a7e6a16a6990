"""`make soak`: a million devices through the whole stack, looked at all the while: memory and connections must be flat.

    python -m tests.bench.soak [--devices N] [--workers N] [--rounds N]

Several campaigns one after the other to the same devices, on a real `sender up` against the simulator. Every two
seconds: resident memory of each process, connections to PostgreSQL and to Valkey, bytes in Valkey. The first campaign
warms everything up; what grows from its end on is what would grow for ever. Tables in Markdown go to standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import psutil
import redis

from sender.settings import running_servers
from tests.bench import report, servers
from tests.bench.measure import MEGABYTE
from tests.bench.places import a_place
from tests.bench.stack import Stack, add_app, run_stack

APP = "com.example.soak"
INTERVAL = 2.0  # seconds between two looks

#: Growth from the first campaign's end to the last one's that still counts as flat.
FLAT = 1.10
#: PostgreSQL's processes share memory: theirs fill the buffers once, and are not a leak.
JUDGED = ("worker", "control", "priority", "beat", "Valkey", "sender up")

_WAL = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
_LEDGER = """
SELECT coalesce(sum(pg_total_relation_size(inhrelid)), 0)::bigint, (SELECT count(*) FROM {s}.deliveries),
       pg_total_relation_size('{s}.batches')
FROM pg_inherits WHERE inhparent = '{s}.deliveries'::regclass
"""
_CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


@dataclass(slots=True)
class Look:
    """One look at everything: bytes of memory by kind of process, connections, and bytes that Valkey holds."""

    memory: dict[str, int] = field(default_factory=dict)
    postgres: int = 0
    valkey: int = 0
    queued: int = 0


@dataclass(slots=True, kw_only=True)
class Round:
    """One campaign: how fast it was, and the looks while it was sent."""

    rate: float
    wal: float  # bytes that PostgreSQL logged, a push
    looks: list[Look]

    def most(self, kind: str) -> int:
        """The most memory that a kind of process had, in its second half: after whatever it starts with."""
        half = self.looks[len(self.looks) // 2 :]
        return max((look.memory.get(kind, 0) for look in half), default=0)

    def peak(self, name: str) -> int:
        """The most connections, or bytes in Valkey."""
        return max((getattr(look, name) for look in self.looks), default=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Send, look, print; 1 when something grew."""
    given = _parser().parse_args(arguments)
    print(f"Machine: {report.machine()}.\n", flush=True)
    rounds: list[Round] = []
    each = given.devices // given.rounds
    with ExitStack() as running:
        place = running.enter_context(a_place())
        simulator = servers.server_of(running.enter_context(servers.simulator(place, record="counts")))
        stack = running.enter_context(run_stack(place, workers=given.workers, production=simulator, sandbox=simulator))
        add_app(stack, APP, devices=each, environment="production")
        for number in range(1, given.rounds + 1):
            before = _number(stack, _WAL)
            with _watched(stack) as looks:
                run = stack.send(APP, each)
            wal = (_number(stack, _WAL) - before) / each
            rounds.append(Round(rate=run.rate, wal=wal, looks=looks))
            print(f"round {number}: {run.devices:,} devices, {run.rate:,.0f}/s", file=sys.stderr, flush=True)
        with stack.database.transaction() as transaction:
            [(ledger, rows, batches)] = transaction.execute(_LEDGER).fetchall()
    for line in _tables(rounds, each):
        print(line)
    print(f"Ledger: {ledger / rows:.0f} bytes a push with its indexes; batches: {batches / rows:.0f} bytes.\n")
    grown = [line for line in _verdicts(rounds) if "**grew**" in line]
    for line in _verdicts(rounds):
        print(line)
    return 1 if grown else 0


def _number(stack: Stack, statement: str) -> int:
    with stack.database.transaction() as transaction:
        [(found,)] = transaction.execute(statement).fetchall()
    return int(found)


@contextlib.contextmanager
def _watched(stack: Stack) -> Iterator[list[Look]]:
    looks: list[Look] = []
    over = threading.Event()

    def watch() -> None:
        with redis.Redis.from_url(running_servers(stack.place.data_dir)["broker_url"]) as broker:
            while True:
                looks.append(_look(stack, broker))
                if over.wait(INTERVAL):
                    return

    thread = threading.Thread(target=watch, name="soak", daemon=True)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()


def _look(stack: Stack, broker: redis.Redis) -> Look:
    look = Look(memory={"sender up": _memory(psutil.Process(stack.process.pid))})
    for kind, process in stack.processes():
        look.memory[kind] = look.memory.get(kind, 0) + _memory(process)
    with stack.database.transaction() as transaction:
        row = transaction.execute(_CONNECTIONS).fetchone()
    look.postgres = int(row[0]) if row else 0
    look.valkey = int(broker.info("clients")["connected_clients"])
    look.queued = int(broker.info("memory")["used_memory"])
    return look


def _memory(process: psutil.Process) -> int:
    """Resident bytes that are the process's own, as far as the system tells."""
    with contextlib.suppress(psutil.Error):
        info = process.memory_info()
        return int(info.rss - getattr(info, "shared", 0))
    return 0


def _tables(rounds: Sequence[Round], devices: int) -> Iterator[str]:
    kinds = [kind for kind in (*JUDGED, "PostgreSQL", "APNs") if any(kind in look.memory for look in rounds[0].looks)]
    yield f"### Soak: {len(rounds)} campaigns of {devices:,} devices\n"
    heads = ["campaign", "pushes/s", "WAL a push", *kinds, "PostgreSQL connections", "Valkey connections", "in Valkey"]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for number, each in enumerate(rounds, 1):
        cells = [
            str(number),
            f"{each.rate:,.0f}",
            f"{each.wal:.0f} bytes",
            *(f"{each.most(kind) / MEGABYTE:.0f} MB" for kind in kinds),
        ]
        cells += [str(each.peak("postgres")), str(each.peak("valkey")), f"{each.peak('queued') / MEGABYTE:.1f} MB"]
        yield f"| {' | '.join(cells)} |"
    yield ""


def _verdicts(rounds: Sequence[Round]) -> Iterator[str]:
    """From the first campaign to the last."""
    first, last = rounds[0], rounds[-1]
    for kind in JUDGED:
        if first.most(kind):
            yield _verdict(f"memory of {kind}", first.most(kind), last.most(kind), MEGABYTE, " MB")
    yield _verdict("connections to PostgreSQL", first.peak("postgres"), last.peak("postgres"), 1, "")
    yield _verdict("connections to Valkey", first.peak("valkey"), last.peak("valkey"), 1, "")


def _verdict(what: str, before: int, after: int, unit: int, name: str) -> str:
    flat = after <= before * FLAT + (2 if unit == 1 else 2 * MEGABYTE)
    return f"- {what}: {before / unit:,.0f} → {after / unit:,.0f}{name}: {'flat' if flat else '**grew**'}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, default=1_000_000, help="pushes in all; a million when left out")
    parser.add_argument("--workers", type=int, default=2, help="campaign workers; 2 when left out")
    parser.add_argument("--rounds", type=int, default=5, help="campaigns, of equal size; 5 when left out")
    return parser


if __name__ == "__main__":
    started = time.monotonic()
    try:
        code = main()
    except KeyboardInterrupt:
        code = 130
    print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
    sys.exit(code)
