"""Our client alone, as a worker uses it: slices of 64 pushes, with back-pressure."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Iterator, Sequence
from itertools import cycle, islice
from typing import Any

from sender.apns.client import ApnsClient
from sender.apns_ids import delivery_apns_ids
from sender.model import Accepted, Answer, CredentialKind, CredentialRef, Environment, Push, PushHeaders, PushType
from sender.settings import Settings, read_settings
from tests.bench.programs.job import PAYLOAD, Job, Meter, read_job, tokens

SLICE = 64
TIMEOUT = 30.0


async def main(job: Job) -> None:
    """Warm up, send, say what was measured."""
    client = ApnsClient(_credential(job), _settings(job), report=lambda *_: None)
    headers = PushHeaders(topic=job.topic, push_type=PushType.ALERT, priority=10, expiration=1_900_000_000)
    made = _pushes(headers)
    await client.send(list(islice(made, 1)), timeout=TIMEOUT)
    await client.send(list(islice(made, job.warm_up)), timeout=TIMEOUT)
    meter = Meter()
    await _send(client, made, job, meter)
    meter.say()
    await client.close(timeout=5.0)


async def _send(client: ApnsClient, made: Iterator[Push], job: Job, meter: Meter) -> None:
    waiting: deque[Any] = deque()
    end = time.perf_counter() + job.seconds
    issued = 0
    while issued < job.count if job.count else time.perf_counter() < end:
        await client.ready()
        wanted = min(SLICE, job.count - issued) if job.count else SLICE
        waiting.append(client.send(list(islice(made, wanted)), timeout=TIMEOUT))
        issued += wanted
        while waiting and waiting[0].done():
            _count(meter, waiting.popleft().result())
    while waiting:
        _count(meter, await _next(waiting))


def _next(waiting: deque[Any]) -> Awaitable[Sequence[Answer]]:
    awaitable: Awaitable[Sequence[Answer]] = waiting.popleft()
    return awaitable


def _count(meter: Meter, answers: Sequence[Answer]) -> None:
    meter.add(len(answers), sum(type(answer) is Accepted for answer in answers))


def _pushes(headers: PushHeaders) -> Iterator[Push]:
    apns_id = delivery_apns_ids(1)
    for number, token in enumerate(cycle(tokens())):
        yield Push(token, apns_id(number), PAYLOAD, headers)


def _credential(job: Job) -> CredentialRef:
    return CredentialRef(
        kind=CredentialKind.KEY,
        environment=Environment.PRODUCTION,
        file=job.key_file,
        team_id=job.team_id,
        key_id=job.key_id,
    )


def _settings(job: Job) -> Settings:
    return read_settings(apns_production_url=job.url, apns_ca_file=job.ca_file, apns_connections=job.connections)


if __name__ == "__main__":
    asyncio.run(main(read_job()))
