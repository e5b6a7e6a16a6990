"""aioapns as it comes, used as its documentation says, with a bounded number of sends in flight.

Its way to another server than Apple's are two attributes of its protocol class.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterator
from itertools import count, cycle, islice
from pathlib import Path
from urllib.parse import urlsplit

from aioapns import APNs, NotificationRequest, PushType
from aioapns.connection import APNsProductionClientProtocol

from tests.bench.programs.job import MESSAGE, Job, Meter, read_job, tokens


async def main(job: Job) -> None:
    """Warm up, send, say what was measured."""
    where = urlsplit(job.url)

    class Local(APNsProductionClientProtocol):
        APNS_SERVER = where.hostname or ""
        APNS_PORT = where.port or 443

    context = ssl.create_default_context(cafile=job.ca_file)
    context.set_alpn_protocols(["h2"])
    client = APNs(
        key=Path(job.key_file).read_text(),
        key_id=job.key_id,
        team_id=job.team_id,
        topic=job.topic,
        ssl_context=context,
        max_connections=job.connections,
    )
    client.pool.protocol_class = Local
    made = cycle(tokens())
    await _send(client, islice(made, 1), 1)
    await _send(client, islice(made, job.warm_up), job.concurrency)
    meter = Meter()
    pushes = islice(made, job.count) if job.count else _until(time.perf_counter() + job.seconds, made)
    meter.add(*await _send(client, pushes, job.concurrency))
    meter.say()
    client.pool.close()


def _until(end: float, made: Iterator[str]) -> Iterator[str]:
    while time.perf_counter() < end:
        yield next(made)


async def _send(client: APNs, made: Iterator[str], concurrency: int) -> tuple[int, int]:
    """Send to each of the tokens; returns how many were answered, and how many accepted."""
    answered, accepted = count(), count()

    async def send() -> None:
        for token in made:
            request = NotificationRequest(
                device_token=token, message=MESSAGE, time_to_live=2_592_000, push_type=PushType.ALERT, priority=10
            )
            response = await client.send_notification(request)
            next(answered)
            if response.is_successful:
                next(accepted)

    await asyncio.gather(*(send() for _ in range(concurrency)))
    return next(answered), next(accepted)


if __name__ == "__main__":
    asyncio.run(main(read_job()))
