"""The clients alone, side by side against one server: ours, stock aioapns, node-apn, and h2load as the ceiling."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sender.apns.provider_token import ProviderTokens
from tests.bench.measure import MemoryWatch, Sample
from tests.bench.places import KEY_ID, TEAM_ID, TOPIC, Place, node_modules
from tests.bench.programs.job import PAYLOAD, Job, tokens
from tests.bench.servers import Server

ROOT = Path(__file__).resolve().parent.parent.parent
OURS, STOCK, NODE, H2LOAD = "sender.apns", "aioapns", "node-apn", "h2load"

_LIMIT = 60.0  # seconds for a program that is told to send for a few
_H2LOAD_PUSHES = 150_000

Say = Callable[[str], None]


class SenderFailedError(Exception):
    """Raised when a sending program ends without figures; the message has its last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a sending program said, and what it was seen to cost."""

    answered: int
    accepted: int
    seconds: float
    cpu: float
    peak: int
    longest_gap: float

    @property
    def sample(self) -> Sample:
        """As a round."""
        pushes = max(self.answered, 1)
        return Sample(rate=self.answered / self.seconds, cpu=self.cpu / pushes * 1e6, peak=self.peak)


Send = Callable[[Place, Server, float], Figures]


def find_senders(say: Say) -> dict[str, Send]:
    """The clients that can be measured here; says which cannot, and why."""
    senders: dict[str, Send] = {OURS: send_ours, STOCK: send_stock}
    modules, missing = node_modules()
    if modules is None:
        say(f"{NODE} is left out: {missing}")
    else:
        found = modules
        senders[NODE] = lambda place, server, seconds: send_node(found, place, server, seconds)
    if shutil.which("h2load") is None:
        say(f"{H2LOAD} is left out: it is not installed (apt-get install nghttp2-client)")
    else:
        senders[H2LOAD] = send_h2load
    return senders


def job_for(place: Place, server: Server, seconds: float) -> Job:
    """What every client is told."""
    return Job(
        url=server.url,
        ca_file=str(place.ca_file),
        key_file=str(place.key_file),
        key_id=KEY_ID,
        team_id=TEAM_ID,
        topic=TOPIC,
        seconds=seconds,
    )


def send_ours(place: Place, server: Server, seconds: float) -> Figures:
    """Our client on its event loop."""
    return run_program("ours", job_for(place, server, seconds))


def send_rejected(place: Place, server: Server, count: int) -> Figures:
    """Our client, over one connection, to a server that rejects."""
    return run_program("ours", replace(job_for(place, server, 0.0), count=count, connections=1))


def send_stock(place: Place, server: Server, seconds: float) -> Figures:
    """aioapns as it comes."""
    return run_program("stock", job_for(place, server, seconds))


def send_node(modules: Path, place: Place, server: Server, seconds: float) -> Figures:
    """node-apn."""
    program = Path(__file__).parent / "programs" / "node_apn.js"
    job = job_for(place, server, seconds)
    return _run(["node", str(program), job.to_json()], {"NODE_PATH": str(modules)})


def run_program(name: str, job: Job) -> Figures:
    """One of our Python programs."""
    return _run([sys.executable, "-m", f"tests.bench.programs.{name}", job.to_json()], {})


def send_h2load(place: Place, server: Server, seconds: float) -> Figures:
    """h2load, a load generator in C: the same requests, with nothing thought in between."""
    paths = place.directory / "h2load-urls"
    body = place.directory / "h2load-body"
    if not paths.exists():
        body.write_bytes(PAYLOAD)
    paths.write_text("".join(f"{server.url}/3/device/{token}\n" for token in tokens()[:1000]))
    token = ProviderTokens(place.credential).header().decode()
    headers = {
        "authorization": token,
        "apns-topic": TOPIC,
        "apns-push-type": "alert",
        "apns-priority": "10",
        "apns-expiration": "1900000000",
        "apns-id": "00000001-0001-8000-8000-000000000001",
    }
    command = ["h2load", "-n", str(_H2LOAD_PUSHES), "-c", "1", "-m", "1000", "-d", str(body), "-i", str(paths)]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said, peak = _finish(command, {})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = re.search(r"finished in ([\d.]+)(m?s)", said)
    succeeded = re.search(r"status codes: (\d+) 2xx", said)
    if took is None or succeeded is None:
        raise SenderFailedError(f"h2load said nothing to be understood:\n{said[-500:]}")
    accepted = int(succeeded[1])
    return Figures(
        answered=accepted,
        accepted=accepted,
        seconds=float(took[1]) / (1000 if took[2] == "ms" else 1),
        cpu=after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        peak=peak,
        longest_gap=0.0,
    )


def _run(command: list[str], environment: Mapping[str, str]) -> Figures:
    said, peak = _finish(command, environment)
    lines = said.strip().splitlines()
    if not lines:
        raise SenderFailedError(f"{command[:3]} said nothing")
    return Figures(**json.loads(lines[-1]), peak=peak)


def _finish(command: list[str], environment: Mapping[str, str]) -> tuple[str, int]:
    """Run a program to its end; returns what it printed and its peak memory."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SENDER_")}
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with MemoryWatch(process.pid) as watch:
        try:
            said, complained = process.communicate(timeout=_LIMIT)
        except subprocess.TimeoutExpired:
            process.kill()
            said, complained = process.communicate()
            complained += f"\nno end within {_LIMIT:g} s"
        except BaseException:
            process.kill()
            process.wait()
            raise
    if process.returncode:
        raise SenderFailedError(f"{command[2]} failed: {' | '.join(complained.strip().splitlines()[-3:])}")
    return said, watch.peak
