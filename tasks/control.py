"""The control tasks: tick, fan-out, sweep, and enqueueing a stored draft."""

from __future__ import annotations

from collections.abc import Sequence

from config.queues import CAMPAIGN, PRIORITY
from sender.client import Sender
from sender.engine.fanout import RESERVED, cut_campaign
from sender.engine.sweep import Sweeper
from sender.engine.tick import tick as run_tick
from tasks import app
from tasks.process import runtime, stopping

_sweeper = Sweeper()


@app.task(name="sender.tick", send_events=False)
def tick() -> None:
    """Start what is due, and have what runs cut. A fan-out that comes too late is dropped: a later tick asks anew."""
    for campaign_id, key in run_tick(runtime().database):
        fanout.apply_async(kwargs={"campaign": key, "id": campaign_id}, expires=RESERVED)


@app.task(name="sender.fanout")
def fanout(*, campaign: str, id: int) -> dict[str, int | bool]:
    """Cut and publish a campaign for one turn; tick asks for the next. `campaign` is for people who search Flower."""
    here = runtime()
    turn = cut_campaign(
        here.database,
        id,
        publish,
        later=here.later,
        installation_rate=here.settings.rate,
        retest_share=here.settings.retest_share,
        shares=here.shares,
        stopped=stopping,
    )
    return {"devices": turn.devices, "batches": turn.batches, "finished": turn.finished}


@app.task(name="sender.sweep", send_events=False)
def sweep() -> None:
    """Mend what was lost, gather retries, finish what is done."""
    here = runtime()
    _sweeper.run(here.database, here.settings, publish, waiting)


@app.task(name="sender.enqueue_draft")
def enqueue_draft(*, key: str) -> dict[str, str]:
    """Release a stored draft: what a crontab entry of anybody's beat can name."""
    with Sender(settings=runtime().settings) as sender:
        sender.campaigns.send(key)
    return {"campaign": key}


def publish(campaign: str, batches: Sequence[int], urgent: bool) -> None:
    """Publish a send for each batch, many to a round trip."""
    settings = runtime().settings
    queue = settings.queue(PRIORITY if urgent else CAMPAIGN)
    task = app.tasks["sender.send"]
    with app.producer_pool.acquire(block=True) as producer, producer.batch():
        for batch in batches:
            task.apply_async(kwargs={"batch": batch, "campaign": campaign}, queue=queue, producer=producer)


def waiting() -> int:
    """How many messages wait for campaign and priority workers."""
    settings = runtime().settings
    with app.connection_for_write() as connection, connection.channel() as channel:
        return sum(
            channel.queue_declare(settings.queue(role), passive=False).message_count for role in (CAMPAIGN, PRIORITY)
        )
