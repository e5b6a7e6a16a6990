"""What APNs checks in a request before it looks at the device: one row a header, Apple's reasons.

Apple, "Sending notification requests to APNs" and "Handling notification responses from APNs".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from sender.model import TOPIC_SUFFIX, PushType
from sender.simulator.replies import Reply, rejection

PATH_PREFIX = b"/3/device/"
_APNS_ID = re.compile(rb"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_EXPIRATION = re.compile(rb"[0-9]{1,18}")
_TOPIC = re.compile(r"[A-Za-z0-9.\-_]{1,255}")
_TOKEN = re.compile(rb"(?:[0-9a-fA-F]{2}){32,255}")
_PAYLOAD_LIMIT = 4096
_VOIP_LIMIT = 5120
_PRIORITIES = {None: 10, b"10": 10, b"5": 5, b"1": 1}

BAD_PATH = rejection(404, "BadPath")
BAD_METHOD = rejection(405, "MethodNotAllowed")
BAD_MESSAGE_ID = rejection(400, "BadMessageId")
BAD_TOKEN = rejection(400, "BadDeviceToken")
DUPLICATE_HEADERS = rejection(400, "DuplicateHeaders")
MISSING_TOKEN = rejection(400, "MissingDeviceToken")
PAYLOAD_EMPTY = rejection(400, "PayloadEmpty")
PAYLOAD_TOO_LARGE = rejection(413, "PayloadTooLarge")
MISSING_TOPIC = rejection(400, "MissingTopic")
BAD_TOPIC = rejection(400, "BadTopic")
TOPIC_DISALLOWED = rejection(400, "TopicDisallowed")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shape:
    """What the requests of a campaign have in common: every header but path, apns-id and content-length.

    `early` is what is wrong before anybody asks who pushes; `fault` is the first thing that is wrong after that.
    """

    early: Reply | None = None
    authorization: bytes | None = field(default=None, repr=False)
    fault: Reply | None = None
    bundle_id: str = ""  # the topic without the push type's suffix; empty when no topic was given
    topic: str = ""
    push_type: str = ""
    priority: int = 10
    expiration: int | None = None
    collapse_id: str | None = None
    payload_limit: int = _PAYLOAD_LIMIT


def shape_of(fields: dict[bytes, bytes]) -> Shape:
    """Judge the headers (`fields` holds them once each, without those that every request has of its own)."""
    topic = fields.get(b"apns-topic", b"").decode("utf-8", "replace")
    kind = fields.get(b"apns-push-type")
    expiration = fields.get(b"apns-expiration")
    collapse_id = fields.get(b"apns-collapse-id")
    push_type, bundle_id = _push_type(kind, topic)
    return Shape(
        early=None if fields.get(b":method") == b"POST" else BAD_METHOD,
        authorization=fields.get(b"authorization"),
        fault=_fault(fields, push_type, topic, bundle_id),
        bundle_id=bundle_id or "",
        topic=topic,
        push_type=push_type or "",
        priority=_PRIORITIES.get(fields.get(b"apns-priority"), 0),
        expiration=int(expiration) if expiration is not None and _EXPIRATION.fullmatch(expiration) else None,
        collapse_id=None if collapse_id is None else collapse_id.decode("utf-8", "replace"),
        payload_limit=_VOIP_LIMIT if push_type == PushType.VOIP else _PAYLOAD_LIMIT,
    )


def _push_type(header: bytes | None, topic: str) -> tuple[str | None, str | None]:
    """The push type, and the bundle id in the topic; None for what is wrong. No header: by the topic's suffix."""
    if header is None:
        for kind, suffix in TOPIC_SUFFIX.items():
            if suffix and topic.endswith(suffix):
                return kind, topic.removesuffix(suffix)
        return PushType.ALERT, topic
    try:
        kind = PushType(header.decode("ascii", "replace"))
    except ValueError:
        return None, topic
    suffix = TOPIC_SUFFIX[kind]
    if topic and not topic.endswith(suffix):
        return kind, None
    return kind, topic.removesuffix(suffix)


def _fault(fields: dict[bytes, bytes], push_type: str | None, topic: str, bundle_id: str | None) -> Reply | None:
    priority = fields.get(b"apns-priority")
    checks = (
        (b"content-encoding" in fields, PAYLOAD_EMPTY),  # bodies go uncompressed
        (not _EXPIRATION.fullmatch(fields.get(b"apns-expiration", b"0")), rejection(400, "BadExpirationDate")),
        (priority not in _PRIORITIES, rejection(400, "BadPriority")),
        (len(fields.get(b"apns-collapse-id", b"")) > 64, rejection(400, "BadCollapseId")),
        (push_type is None, rejection(400, "InvalidPushType")),
        (bool(topic) and not _TOPIC.fullmatch(topic), BAD_TOPIC),
        (bundle_id is None, BAD_TOPIC),
        (push_type == PushType.BACKGROUND and priority not in (None, b"5"), rejection(400, "BadPriority")),
        # No priority means 10, which background pushes may not have; Apple takes it for 5 there.
    )
    return next((reply for wrong, reply in checks if wrong), None)


def token_of(path: bytes) -> bytes | Reply:
    """The token as lower-case hex from the path, or what is wrong with the path. At least 32 bytes, any even length."""
    if not path.startswith(PATH_PREFIX):
        return BAD_PATH
    token = path[len(PATH_PREFIX) :]
    if not token:
        return MISSING_TOKEN
    if not _TOKEN.fullmatch(token):
        return BAD_TOKEN if b"/" not in token else BAD_PATH
    return token.lower()


def good_apns_id(value: bytes) -> bool:
    """Whether a request's apns-id is a canonical UUID, in either case."""
    return _APNS_ID.fullmatch(value) is not None


def payload_fault(body: bytes, limit: int) -> Reply | None:
    """What is wrong with the payload: its size, or that it is no JSON object.

    Apple has no reason of its own for the latter; a body that holds no object is answered with PayloadEmpty.
    """
    if len(body) > limit:
        return PAYLOAD_TOO_LARGE
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return PAYLOAD_EMPTY
    return None if isinstance(value, dict) and value else PAYLOAD_EMPTY
