"""What breaks the sender is told apart and ended: a batch that failed too often goes on a device at a time."""

from __future__ import annotations

import structlog

from sender.redaction import redact
from sender.store import poison
from sender.store.database import Database
from sender.store.outages import is_outage

log = structlog.get_logger()

_LONGEST_MESSAGE = 200


def name_error(error: BaseException) -> str:
    """An error as it is kept with a batch and shown: its type and the first line of its message, redacted."""
    diagnosis = getattr(error, "diag", None)  # PostgreSQL's further lines quote the data
    message = getattr(diagnosis, "message_primary", None) or str(error)
    line = next(iter(message.strip().splitlines()), "")
    name = type(error).__name__
    return f"{name}: {redact(line)[:_LONGEST_MESSAGE]}" if line else name


def part_suspected(database: Database) -> None:
    """Have the devices of batches that failed too often go one by one; end those that failed by themselves."""
    with database.transaction() as transaction:
        suspected = poison.suspected(transaction)
    for batch_id in suspected:
        try:
            with database.transaction() as transaction:
                sentence = poison.part(transaction, batch_id)
        except Exception as error:
            if is_outage(error):
                raise
            log.exception("parting_broke", batch=batch_id)
            with database.transaction() as transaction:
                sentence = poison.write_off(transaction, batch_id)
        _tell(batch_id, sentence)


def _tell(batch_id: int, sentence: poison.Sentence | None) -> None:
    if sentence is None:
        return
    about = {"campaign": sentence.campaign, "batch": batch_id, "error": sentence.error}
    if sentence.device_id is not None:
        log.error("delivery_failed", device=sentence.device_id, **about)
    else:
        log.warning("batch_parted", devices=sentence.devices, **about)
