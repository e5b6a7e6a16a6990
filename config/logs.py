"""Logging: structlog for our events, the standard library's handlers for everybody's; one format for both."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from sender.redaction import redact_value
from sender.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Write every log line to standard error, as console text or as one JSON object a line (SENDER_LOG_FORMAT)."""
    level = getattr(logging, settings.log_level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        # Plain tracebacks: a fancy one shows local variables, and with them tokens and payloads.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,  # of other libraries' records, too
                redact_event,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for noisy in ("celery.worker.strategy", "celery.app.trace", "celery.beat", "aioapns", "kombu"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def redact_event(_logger: Any, _method: str, event: Any) -> Any:
    """The last processor before the renderer: cuts secrets, tokens and values of rows out of everybody's lines."""
    return {name: redact_value(value) for name, value in event.items()}
