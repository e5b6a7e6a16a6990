"""aioapns's requests and results, and ours."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from aioapns.common import NotificationRequest, NotificationResult
from aioapns.exceptions import ConnectionClosed

from sender.model import Accepted, Answer, Push, PushHeaders, PushType, Rejected


def push_of(request: NotificationRequest, topic: str) -> Push:
    """aioapns's request as ours; its time to live is relative, ours absolute."""
    expiration = None
    if request.time_to_live is not None:
        expiration = int(datetime.now(UTC).timestamp()) + request.time_to_live
    return Push(
        token=request.device_token,
        apns_id=request.notification_id,
        payload=json.dumps(request.message, ensure_ascii=False).encode(),
        headers=PushHeaders(
            topic=request.apns_topic or topic,
            push_type=PushType(request.push_type.value) if request.push_type else PushType.ALERT,
            priority=int(request.priority or 10),
            expiration=expiration,
            collapse_id=request.collapse_key,
        ),
    )


def result_of(request: NotificationRequest, answer: Answer | None) -> NotificationResult:
    """Our answer as aioapns's result. Raises its `ConnectionClosed` when there is none."""
    if isinstance(answer, Accepted):
        return NotificationResult(request.notification_id, "200")
    if isinstance(answer, Rejected):
        stamp = int(answer.timestamp.timestamp() * 1000) if answer.timestamp else None
        return NotificationResult(request.notification_id, str(answer.status), answer.reason, stamp)
    raise ConnectionClosed(answer.cause if answer else "no answer")
