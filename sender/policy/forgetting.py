"""What of a campaign must go when a person is forgotten. Pure: on segments and contents as JSON."""

from __future__ import annotations

from typing import Any

NOBODY: dict[str, Any] = {"not": {"all": True}}


def without_user(segment: Any, user: str) -> Any:
    """A segment that names the user no more, and matches whom it matched otherwise."""
    match segment:
        case {"user": list(users)} if user in users:
            others = [other for other in users if other != user]
            return {**segment, "user": others} if others else NOBODY
        case dict():
            return {name: without_user(part, user) for name, part in segment.items()}
        case list():
            return [without_user(part, user) for part in segment]
        case _:
            return segment


def is_only_for(segment: Any, user: str) -> bool:
    """Whether a segment can match nobody but the user: then the message is theirs as well."""
    match segment:
        case {"user": [only]}:
            return bool(only == user)
        case {"not": {"all": True}}:  # what is left of another one who was forgotten
            return True
        case {"and": list(parts)}:
            return any(is_only_for(part, user) for part in parts)
        case {"or": [_, *_] as parts}:
            return all(is_only_for(part, user) for part in parts)
        case _:
            return False


def with_key(document: Any, old: str, new: str) -> Any:
    """A segment or content whose references to a campaign follow it to its new key."""
    match document:
        case {"not_sent": key} if key == old:
            return {**document, "not_sent": new}
        case dict():
            return {name: with_key(part, old, new) for name, part in document.items()}
        case list():
            return [with_key(part, old, new) for part in document]
        case _:
            return document
