"""Mints provider tokens (JWT, ES256) that come out byte-identical in every process on every host.

Apple ("Establishing a token-based connection to APNs") wants a token refreshed at most every 20 and at least every 60
minutes, and counts how many different ones a team uses. So `iat` lies on a grid of 40 minutes, and the signature is
deterministic (RFC 6979): everybody mints the same token without having to share it.
"""

from __future__ import annotations

import json
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from sender.apns.credentials import KeyCredential, load_credential
from sender.errors import CredentialError
from sender.model import CredentialRef

GRID = 2400  # seconds between two tokens
FAST_CLOCK = 120  # seconds by which a clock may be ahead of Apple's before a token lies in the future
FROZEN_UNTIL = 3300  # seconds of age up to which a frozen token is still used; Apple refuses it at 3600
_LOOK_EVERY = 5.0  # seconds between two looks at the key's file


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderToken:
    """A minted token. `repr` does not show it."""

    value: str = field(repr=False)
    issued_at: int
    next_change: int  # Unix seconds at which the grid moves on


def grid_instant(team_id: str, key_id: str, now: float) -> int:
    """`iat` of the token to use at `now` (Unix seconds): 2 to 42 minutes old, the same for everybody."""
    shift = int.from_bytes(sha256(f"{team_id}/{key_id}".encode()).digest()[:8], "big") % GRID
    return int((now - FAST_CLOCK - shift) // GRID) * GRID + shift


def mint(credential: KeyCredential, issued_at: int) -> ProviderToken:
    """Sign a token for `issued_at`: the same bytes for the same key, ids and instant, always (RFC 7515, RFC 6979)."""
    header = {"alg": "ES256", "kid": credential.key_id}
    claims = {"iss": credential.team_id, "iat": issued_at}
    signed = b".".join(_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, claims))
    der = credential.private_key.sign(signed, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
    r, s = decode_dss_signature(der)
    signature = _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
    return ProviderToken(
        value=(signed + b"." + signature).decode(),
        issued_at=issued_at,
        next_change=issued_at + GRID + FAST_CLOCK,
    )


def _base64url(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")


class ProviderTokens:
    """The current token of one key, minted when the grid moves on and when the key's file changes.

    A file that became unreadable or wrong keeps the key that was loaded before; `fault` then says what is wrong.
    Nothing in flight is touched: the next request carries the next token.
    """

    def __init__(
        self,
        ref: CredentialRef,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ref = ref
        self.fault: str | None = None
        self._clock = clock
        self._monotonic = monotonic
        self._stamp = file_stamp(ref.file)
        self._credential = self._load()
        self._token: ProviderToken | None = None
        self._header = b""
        self._frozen = False
        self._next_look = monotonic() + _LOOK_EVERY

    def current(self) -> ProviderToken:
        """The token to send with now."""
        if self._monotonic() >= self._next_look:
            self._reload()
        now = self._clock()
        token = self._token
        if token is None or self._stale(token, now):
            issued_at = grid_instant(self._credential.team_id, self._credential.key_id, now)
            token = self._token = mint(self._credential, issued_at)
            self._header = b"bearer " + token.value.encode()
            self._frozen = False
        return token

    def header(self) -> bytes:
        """The value of the `authorization` header; the same object until the token changes."""
        self.current()
        return self._header

    def get_header(self) -> str:
        """The same as text: what aioapns asks of an authorization provider."""
        return self.header().decode()

    def freeze(self) -> bool:
        """Keep the current token although the grid moves on, while it is under 55 minutes old.

        For TooManyProviderTokenUpdates. False when there is nothing (young enough) to keep.
        """
        token = self._token
        self._frozen = token is not None and self._clock() < token.issued_at + FROZEN_UNTIL
        return self._frozen

    def _stale(self, token: ProviderToken, now: float) -> bool:
        if now < token.issued_at - FAST_CLOCK:  # the clock was set back
            return True
        ends = token.issued_at + FROZEN_UNTIL if self._frozen else token.next_change
        return now >= ends

    def _load(self) -> KeyCredential:
        credential = load_credential(self.ref)
        if not isinstance(credential, KeyCredential):
            raise CredentialError(f"key {self.ref.file}", ["a certificate has no provider token"])
        return credential

    def _reload(self) -> None:
        self._next_look = self._monotonic() + _LOOK_EVERY
        stamp = file_stamp(self.ref.file)
        if stamp == self._stamp and self.fault is None:
            return
        try:
            credential = self._load()
        except CredentialError as error:
            self.fault = str(error)
            return
        self._stamp, self.fault = stamp, None
        if credential.private_key.private_numbers() != self._credential.private_key.private_numbers():
            self._token = None
        self._credential = credential


def file_stamp(file: str) -> tuple[int, int, int] | None:
    """What changes when a file is written or replaced: (inode, modification time in ns, size); None when it is gone."""
    try:
        status = Path(file).stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
