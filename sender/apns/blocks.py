"""The header blocks of requests: what pushes of one campaign share is built once for a connection.

Apple, "Sending notification requests to APNs"; RFC 7541.
"""

from __future__ import annotations

from aioapns.connection import AuthorizationHeaderProvider
from ngh2 import Header, NeverIndexedHeader

from sender.model import PushHeaders

#: Places in a block of what differs from push to push.
PATH, APNS_ID = 3, -1
MOST_BLOCKS = 64  # kept: campaigns that share a connection at one time


class HeaderBlocks:
    """Blocks by what they say, under the authorization of now."""

    def __init__(self, authority: str, provider: AuthorizationHeaderProvider | None) -> None:
        self.authority = authority
        self._provider = provider
        self._authorization: bytes | None = None
        self._blocks: dict[PushHeaders, list[Header]] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def get(self, headers: PushHeaders) -> list[Header]:
        """The block of these headers; the caller puts in path and apns-id."""
        return self._blocks.get(headers) or self._build(headers)

    def refresh(self) -> None:
        """Use the provider's current token from now on; what is in flight keeps the one it carries."""
        provider = self._provider
        if provider is None:
            return
        header = getattr(provider, "header", None)
        value = header() if header is not None else provider.get_header().encode()
        if value is not self._authorization and value != self._authorization:
            self._authorization = value
            self._blocks.clear()

    def _build(self, headers: PushHeaders) -> list[Header]:
        """The header block that all pushes with these headers share; path and apns-id are put in for each.

        Never indexed: the path and the token, which are secret (RFC 7541, 7.1.3), and the apns-id, which would push
        everything else out of the dynamic table.
        """
        never = NeverIndexedHeader
        block: list[Header] = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":authority", self.authority.encode()),
            (b":path", b""),
        ]
        if self._authorization is not None:
            block.append(never(b"authorization", self._authorization))
        block.append((b"apns-topic", headers.topic.encode()))
        block.append((b"apns-push-type", headers.push_type.value.encode()))
        block.append((b"apns-priority", str(headers.priority).encode()))
        if headers.expiration is not None:
            block.append((b"apns-expiration", str(headers.expiration).encode()))
        if headers.collapse_id is not None:
            block.append((b"apns-collapse-id", headers.collapse_id.encode()))
        block.append((b"apns-id", b""))
        if len(self._blocks) >= MOST_BLOCKS:
            self._blocks.clear()
        self._blocks[headers] = block
        return block
