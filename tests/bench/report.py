"""The tables in Markdown, and the lines that say what must be shown, each with what was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from tests.bench.asking import Asked
from tests.bench.cutting import Cut
from tests.bench.measure import MEGABYTE, median_of
from tests.bench.results import ClientRounds, Rejections, Results, percentile, spread
from tests.bench.senders import H2LOAD, NODE, OURS, STOCK
from tests.bench.stack import Run

#: In this order, whatever comes first.
_KINDS = ("worker", "control", "priority", "beat", "PostgreSQL", "Valkey", "APNs")


def machine() -> str:
    """What this ran on, in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f", load {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return (
        f"{cores} cores{_model()}, {platform.system()}, Python {platform.python_version()}, "
        f"{datetime.now(UTC):%Y-%m-%d}{load}"
    )


def tables(results: Results) -> Iterator[str]:
    """Everything that was measured."""
    for server in dict.fromkeys(server for server, _ in results.clients):
        yield f"### Clients alone, against {server}\n"
        yield from _clients(results.clients, server)
    if results.rejections:
        yield from _rejections(results.rejections)
    if results.batches:
        yield f"### End to end, by batch size and worker processes (APNs: {results.campaign_server})\n"
        yield from _runs(
            ("workers", "batch size"),
            [((str(workers), f"{size:,}"), runs) for (workers, size), runs in sorted(results.batches.items())],
        )
    if results.beside:
        yield "In the same rounds, merely sending:\n"
        yield from _clients(results.beside, results.campaign_server)
    if results.answers:
        yield "### End to end, by what APNs answers (APNs: simulator)\n"
        yield from _runs(
            ("dead tokens", "latency"),
            [((f"{dead:.0%}", f"{latency:g} ms"), runs) for (dead, latency), runs in results.answers.items()],
        )
    if results.scale:
        yield f"### End to end, by devices, with one worker (APNs: {results.campaign_server})\n"
        yield from _runs((), [((), runs) for _, runs in sorted(results.scale.items())])
    yield from _memory(results)
    if results.cuts:
        yield from _cuts(results.cuts)
    if results.asked:
        yield from _asked(results.asked)
    if results.singles:
        yield from _singles([1000 * seconds for seconds in results.singles])


def verdicts(results: Results) -> Iterator[str]:
    """The lines of what must be shown. Nothing fails here: a machine under load, or another machine, is no bug."""
    yield "### It must show\n"
    yield from _table(("what", "wanted", "measured"), list(_lines(results)))


def _lines(results: Results) -> Iterator[tuple[str, str, str]]:
    for other, least in ((STOCK, 15.0), (NODE, 3.0), (H2LOAD, 0.5)):
        yield _at_least(f"client alone, to {other}", least, results.client_ratio(OURS, other))
    for other, least in ((STOCK, 8.0), (NODE, 1.0)):
        yield _at_least(f"end to end, to {other} alone", least, results.campaign_ratio(other))
    rejections = results.rejections
    if rejections is None:
        yield "rejections in a row over one connection", "no reconnect, no stall", "not measured"
    else:
        good = rejections.connections == 1 and rejections.rejected == rejections.count and rejections.longest_gap < 1
        yield (
            f"{rejections.count:,} rejections in a row",
            "1 connection, no stall",
            f"{rejections.connections} connection, {rejections.rejected:,} answers, longest wait "
            f"{rejections.longest_gap * 1000:.0f} ms: {_met(good)}",
        )
    plain, slow = results.answers.get((0.0, 0.0)), results.answers.get((0.0, 60.0))
    share = median(b.rate / a.rate for a, b in zip(plain, slow, strict=True)) if plain and slow else None
    yield _at_least("end to end at 60 ms, to 0 ms", 0.8, share)
    if len(results.scale) > 1:
        costs = {devices: median(run.cpu_sum for run in runs) for devices, runs in results.scale.items()}
        many = max(costs)
        grown = costs.pop(many) / min(costs.values())
        yield (
            f"CPU a push with {many:,} devices, to the least with fewer",
            "at most 1.2 times",
            f"{grown:.2f} times: {_met(grown <= 1.2)}",
        )
    growth = results.growth
    yield (
        "a worker's memory from its 100,000th push on",
        "within 10 %",
        "not measured"
        if growth is None
        else f"{growth.begin / MEGABYTE:.0f} → {growth.end / MEGABYTE:.0f} MB, at most "
        f"{growth.ratio - 1:+.1%}: {_met(growth.ratio <= 1.1)}",
    )


def _at_least(what: str, least: float, found: float | None) -> tuple[str, str, str]:
    measured = "not measured" if found is None else f"{found:.2f} times: {_met(found >= least)}"
    return what, f"at least {least:g} times", measured


def _met(met: bool) -> str:
    return "met" if met else "**not met**"


def _clients(measured: ClientRounds, server: str) -> Iterator[str]:
    rows = []
    ours = measured.get((server, OURS))
    for (where, client), rounds in measured.items():
        if where != server:
            continue
        found = median_of(rounds)
        ratio = median(a.rate / b.rate for a, b in zip(ours, rounds, strict=False)) if ours else None
        rows.append(
            (
                client,
                f"{found.rate:,.0f}",
                f"{found.low:,.0f}–{found.high:,.0f}",
                f"{found.cpu:.1f} µs",
                f"{found.peak / MEGABYTE:.0f} MB",
                "–" if ratio is None else f"{ratio:.2f}",
            )
        )
    yield from _table(("client", "pushes/s", "slowest–fastest", "CPU a push", "peak memory", "ours to it"), rows)


def _rejections(found: Rejections) -> Iterator[str]:
    yield "### Rejections in a row, over one connection\n"
    heads = ("410s asked for", "answered as such", "connections opened", "pushes/s", "CPU a push", "longest wait")
    row = (
        f"{found.count:,}",
        f"{found.rejected:,}",
        str(found.connections),
        f"{found.rate:,.0f}",
        f"{found.cpu:.1f} µs",
        f"{found.longest_gap * 1000:.0f} ms",
    )
    yield from _table(heads, [row])


def _singles(times: Sequence[float]) -> Iterator[str]:
    yield "### One push, from `enqueue` to APNs\n"
    figures = [percentile(times, 0.5), percentile(times, 0.99), max(times)]
    row = (str(len(times)), *(f"{figure:.0f} ms" for figure in figures))
    yield from _table(("pushes", "p50", "p99", "slowest"), [row])


def _runs(names: Sequence[str], found: Sequence[tuple[tuple[str, ...], list[Run]]]) -> Iterator[str]:
    kinds = [kind for kind in _KINDS if any(kind in run.cpu for _, runs in found for run in runs)]
    rows = []
    for values, runs in found:
        middle, low, high = spread([run.rate for run in runs])
        costs = [median(run.cpu.get(kind, 0.0) for run in runs) for kind in kinds]
        rows.append(
            (
                *values,
                f"{runs[0].devices:,}",
                f"{middle:,.0f}",
                f"{low:,.0f}–{high:,.0f}",
                f"{median(run.cpu_sum for run in runs):.1f}",
                *(f"{cost:.1f}" for cost in costs),
            )
        )
    costs_of = ("(APNs)" if kind == "APNs" else kind for kind in kinds)
    yield from _table((*names, "devices", "pushes/s", "slowest–fastest", "CPU µs a push", *costs_of), rows)


def _cuts(found: Sequence[Cut]) -> Iterator[str]:
    yield f"### Cutting an audience of {found[0].devices:,} devices\n"
    heads = ("segment", "audience", "transactions", "longest", "beginning", "middle", "end", "dearest to cheapest")
    rows = [
        (
            each.segment,
            f"{each.audience:,}",
            str(each.steps),
            f"{each.longest * 1000:.0f} ms",
            *(f"{cost:.1f} µs" for cost in (each.beginning, each.middle, each.end)),
            f"{each.spread:.2f}",
        )
        for each in found
    ]
    yield from _table(heads, rows)


def _asked(found: Sequence[Asked]) -> Iterator[str]:
    yield "### What commands ask of a large installation\n"
    rows = [
        (
            each.question,
            f"{each.milliseconds:.0f} ms",
            ", ".join(f"{table} {count:,}" for table, count in each.rows.items() if count),
        )
        for each in found
    ]
    yield from _table(("question", "takes", "rows looked at"), rows)


def _memory(results: Results) -> Iterator[str]:
    if not results.peaks:
        return
    yield "### Peak memory of each kind of process, over all campaigns\n"
    kinds = [kind for kind in _KINDS if kind in results.peaks]
    yield from _table(kinds, [[f"{results.peaks[kind] / MEGABYTE:.0f} MB" for kind in kinds]])


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f" ({line.partition(':')[2].strip()})"
    except OSError:
        pass
    return ""
