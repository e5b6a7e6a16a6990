"""What an error in one step of many costs: that step. Steps that stand beside each other, and steps that are repeated
for ever, are taken inside of these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from sender.store.outages import is_away, is_outage

log = structlog.get_logger()


@contextmanager
def apart(event: str, **about: object) -> Iterator[None]:
    """A step that keeps none of the others from its turn: what breaks in it, or has somebody in its way, is logged as
    `event`. A database that is away is everybody's business, and raised."""
    try:
        yield
    except Exception as error:
        if is_away(error):
            raise
        log.exception(event, **about)


@contextmanager
def survived(step: str, **about: object) -> Iterator[None]:
    """A step whose failure ends nothing: it is taken again soon, or can be done without. A database that is away is
    worth a warning, all else a traceback."""
    try:
        yield
    except Exception as error:
        if is_outage(error):
            log.warning("step_failed", step=step, error=type(error).__name__, **about)
        else:
            log.exception("step_broke", step=step, **about)
