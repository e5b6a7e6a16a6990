"""`make bench`: measure the clients alone and whole campaigns side by side, and print tables in Markdown.

    python -m tests.bench [--quick] [--rounds N] [--only PART …] [--json FILE]
    python -m tests.bench --only cut --devices 10000000
    python -m tests.bench --only queries

Everything runs on loopback in a temporary directory and is stopped and removed at the end. Progress goes to standard
error, tables to standard output. What must be shown is printed as met or not met; nothing fails.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sender.errors import SenderError
from sender.settings import Settings
from sender.simulator import Scenario, Shares
from tests.bench import asking, cutting, report, servers
from tests.bench.campaigns import FULL, QUICK, Bench
from tests.bench.history import FEW, MANY
from tests.bench.places import a_place
from tests.bench.results import Rejections, Results
from tests.bench.senders import SenderFailedError, find_senders, send_rejected
from tests.bench.stack import CampaignStuckError

PARTS = ("clients", "rejections", "batches", "answers", "devices", "single")
#: Only when they are asked for: they are about the size of tables, and fill some.
ASKED = ("cut", "queries")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for and print it."""
    given = _parser().parse_args(arguments)
    size = QUICK if given.quick else FULL
    if given.rounds:
        size = replace(size, rounds=given.rounds)
    parts = tuple(given.only or PARTS)
    signal.signal(signal.SIGTERM, _interrupt)
    results = Results(default_batch_size=Settings.model_fields["batch_size"].default)
    print(f"Machine: {report.machine()}; {size.rounds} rounds, interleaved.\n", flush=True)
    with ExitStack() as running:
        place = running.enter_context(a_place())
        simulator = running.enter_context(servers.simulator(place, record="full"))
        found = [servers.server_of(simulator)]
        if servers.NGINX is None:
            _say(f"{servers.NO_NGINX}: campaigns are measured against the simulator, which takes more of the machine")
        else:
            found.insert(0, running.enter_context(servers.nginx(place)))
        bench = Bench(
            place=place,
            size=size,
            production=found[0],
            simulator=simulator,
            senders=find_senders(_say) if {"clients", "batches"} & set(parts) else {},
            results=results,
            say=_say,
        )
        results.campaign_server = found[0].name
        steps = {
            "clients": lambda: _clients(bench, found),
            "rejections": lambda: _rejections(bench),
            "batches": bench.by_batch_size,
            "answers": bench.by_answers,
            "devices": bench.by_devices,
            "single": bench.single_pushes,
            "cut": lambda: results.cuts.extend(cutting.measure(place, given.devices, _say)),
            "queries": lambda: results.asked.extend(asking.measure(place, FEW if given.quick else MANY, _say)),
        }
        for part in parts:
            _measure(part, steps[part])
    for line in report.tables(results):
        print(line)
    for line in report.verdicts(results) if set(parts) & set(PARTS) else ():
        print(line)
    if given.json:
        given.json.write_text(json.dumps(_as_json(results), indent=1))
    return 0


def _measure(part: str, step: Any) -> None:
    started = time.monotonic()
    _say(f"{part} …")
    try:
        step()
    except (SenderFailedError, SenderError, CampaignStuckError, TimeoutError) as error:
        _say(f"{part}: given up: {error}")
    _say(f"{part}: {time.monotonic() - started:.0f} s")


def _clients(bench: Bench, found: Sequence[servers.Server]) -> None:
    bench.simulator.control.set_scenario(Scenario())
    for round_ in range(bench.size.rounds):
        for server in found:
            for name, send in bench.senders.items():
                bench.simulator.control.reset()
                figures = send(bench.place, server, bench.size.seconds)
                if figures.accepted != figures.answered or not figures.answered:
                    raise SenderFailedError(f"{name}: {figures.accepted} of {figures.answered} were accepted")
                sample = figures.sample
                bench.results.clients.setdefault((server.name, name), []).append(sample)
                _say(f"round {round_ + 1}: {name} to {server.name}: {sample.rate:,.0f}/s, {sample.cpu:.1f} µs")


def _rejections(bench: Bench) -> None:
    control = bench.simulator.control
    control.set_scenario(Scenario(shares=Shares(unregistered=1.0)))
    control.reset()
    figures = send_rejected(bench.place, servers.server_of(bench.simulator), bench.size.rejections)
    counted = control.counters()
    bench.results.rejections = Rejections(
        count=bench.size.rejections,
        rejected=figures.answered - figures.accepted if counted.by_status.get(410, 0) >= figures.answered else 0,
        connections=counted.connections_opened,
        rate=figures.sample.rate,
        cpu=figures.sample.cpu,
        longest_gap=figures.longest_gap,
    )
    control.set_scenario(Scenario())


def _as_json(results: Results) -> dict[str, Any]:
    value = asdict(results)
    for name in ("clients", "beside", "batches", "answers", "scale"):
        value[name] = [
            {"of": list(key) if isinstance(key, tuple) else key, "rounds": rounds}
            for key, rounds in value[name].items()
        ]
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small counts, one round: about two minutes")
    parser.add_argument("--rounds", type=_positive, help=f"rounds of everything; {FULL.rounds} when left out")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS + ASKED, metavar="PART", help=f"of: {', '.join(PARTS + ASKED)}"
    )
    parser.add_argument("--devices", type=_positive, default=1_000_000, help="of `cut`; 1,000,000 when left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there too")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        _say("stopped; nothing is left behind")
        sys.exit(130)
