"""`make chaos`: campaigns under faults, round after round, and a table of what came of them.

Exit status 0 when every promise was kept, 1 when one was broken, 130 when it was stopped. A round is repeated with its
seed: `make chaos ROUNDS=1 SEED=17 DELIVERY=at_least_once`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chaos.plan import draw
from tests.chaos.runner import Round, run_round
from tests.chaos.shows import SHOWS
from tests.chaos.stack import ChaosStack
from tests.chaos.table import head, row, summary

DELIVERIES = ("at_least_once", "at_most_once")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; returns the exit status."""
    asked = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # that the database is away is what is asked for
    rounds: list[Round] = []
    print(head(), flush=True)
    try:
        for done in _rounds(asked):
            rounds.append(done)
            print(row(done), flush=True)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(f"\n{summary(rounds)}", flush=True)
    return 0 if all(each.verdict.holds for each in rounds) else 1


def _rounds(asked: argparse.Namespace) -> Iterator[Round]:
    if asked.rounds:
        with ChaosStack(asked.devices) as stack:
            for delivery in DELIVERIES if asked.delivery == "both" else (asked.delivery,):
                for number in range(asked.rounds):
                    yield _round(stack, number + 1, asked.seed + number, delivery, asked.faults)
    if asked.shows:
        yield from _shows(asked.shows_scale)


def _round(stack: ChaosStack, number: int, seed: int, delivery: str, faults: int) -> Round:
    name = f"{delivery}-{number}-{uuid.uuid4().hex[:6]}"
    done = run_round(stack, draw(seed, faults=faults), name=name, label=str(number), seed=seed, delivery=delivery)
    _look_after(stack, done, f"{delivery}-seed-{seed}")
    return done


def _shows(scale: float) -> Iterator[Round]:
    for show in SHOWS:
        with ChaosStack(int(show.devices * scale)) as stack:
            done = run_round(stack, show.plan, name=show.name.replace(" ", "-"), label=show.name)
            _look_after(stack, done, show.name.replace(" ", "-"))
            yield done


def _look_after(stack: ChaosStack, done: Round, name: str) -> None:
    """Keep the logs of a round that broke something, and leave nothing of it to the next."""
    if done.verdict.holds:
        return
    kept = Path(tempfile.gettempdir()) / f"chaos-{name}-{uuid.uuid4().hex[:6]}"
    shutil.copytree(stack.data_dir / "logs", kept)
    print(f"the logs of this round are kept in {kept}", file=sys.stderr, flush=True)
    with contextlib.suppress(AssertionError, TimeoutError):
        stack.end_campaigns()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each kind of delivery")
    parser.add_argument("--seed", type=int, default=1, help="of the first round; each next one has the next")
    parser.add_argument("--delivery", choices=(*DELIVERIES, "both"), default="both")
    parser.add_argument("--devices", type=int, default=50_000)
    parser.add_argument("--faults", type=int, default=6, help="in one round")
    parser.add_argument(
        "--shows", action=argparse.BooleanOptionalAction, default=True, help="the shows after the rounds"
    )
    parser.add_argument("--shows-scale", type=float, default=1.0, help="their sizes, as a share")
    return parser


if __name__ == "__main__":
    sys.exit(main())
