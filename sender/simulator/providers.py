"""Who is pushing: provider tokens and client certificates, judged as APNs judges them.

Apple, "Establishing a token-based connection to APNs" and "Handling notification responses from APNs".
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

from sender.errors import CredentialError
from sender.model import Environment
from sender.simulator.replies import Reply, rejection
from sender.simulator.scenario import ProviderTokens

_MISSING = rejection(403, "MissingProviderToken")
_INVALID = rejection(403, "InvalidProviderToken")
_EXPIRED = rejection(403, "ExpiredProviderToken")
_UNRELATED = rejection(403, "UnrelatedKeyIdInToken")
_WRONG_ENVIRONMENT = rejection(403, "BadEnvironmentKeyIdInToken")
_TOO_MANY = rejection(429, "TooManyProviderTokenUpdates")
_KEY_ID_LENGTH = 10  # of key ids and team ids alike


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderKey:
    """A signing key that the simulated APNs knows. `environments` and `topics` limit what it may be used for."""

    public_key: ec.EllipticCurvePublicKey = field(repr=False)
    team_id: str
    key_id: str
    environments: frozenset[Environment] = frozenset(Environment)
    topics: frozenset[str] = frozenset()  # bundle ids; empty: all that the simulator serves


def load_provider_key(
    path: Path, *, team_id: str, key_id: str | None = None, environments: Sequence[Environment] = tuple(Environment)
) -> ProviderKey:
    """Read a .p8 or a public key (PEM); the key id defaults from the name AuthKey_XXXXXXXXXX.p8.

    Raises `CredentialError`.
    """
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise CredentialError(f"key {path}", [f"cannot be read: {error.strerror}"]) from None
    found_id = key_id or (path.stem.removeprefix("AuthKey_") if path.stem.startswith("AuthKey_") else "")
    faults = [
        f"the {what} id must have 10 characters, not {value!r}"
        for what, value in (("key", found_id), ("team", team_id))
        if len(value) != _KEY_ID_LENGTH
    ]
    try:
        if b"PUBLIC KEY" in pem:
            public: object = serialization.load_pem_public_key(pem)
        else:
            public = serialization.load_pem_private_key(pem, None).public_key()
    except (ValueError, TypeError):
        raise CredentialError(f"key {path}", [*faults, "is no unencrypted PEM key"]) from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        faults.append("is no P-256 key, as APNs needs one")
    if faults or not isinstance(public, ec.EllipticCurvePublicKey):
        raise CredentialError(f"key {path}", faults)
    return ProviderKey(public_key=public, team_id=team_id, key_id=found_id, environments=frozenset(environments))


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a distinct authorization header is worth, while it is worth that. `fault` None: good."""

    fault: Reply | None
    expires_at: float = 0.0  # Unix seconds from which a good token is expired
    team_id: str = ""
    key_id: str = ""
    topics: frozenset[str] = frozenset()


class Providers:
    """Judges provider tokens; remembers the distinct ones of each team, to count its updates."""

    def __init__(self, keys: Sequence[ProviderKey], *, accept_any_key: bool) -> None:
        self._keys = {(key.team_id, key.key_id): key for key in keys}
        self._accept_any = accept_any_key
        self._teams: dict[str, dict[bytes, float]] = {}
        self._distinct: set[bytes] = set()

    @property
    def distinct(self) -> int:
        """How many different authorization headers were seen."""
        return len(self._distinct)

    def forget(self) -> None:
        """Start counting anew."""
        self._teams.clear()
        self._distinct.clear()

    def judge(
        self,
        header: bytes | None,
        environment: Environment,
        known: dict[bytes, Verdict],
        rules: ProviderTokens,
        now: float,
    ) -> Verdict:
        """The verdict on a header; `known` holds those that this connection has shown already, and is added to."""
        if header is None:
            return Verdict(fault=_MISSING)
        verdict = known.get(header)
        if verdict is None:
            self._distinct.add(header)
            verdict = self._fresh(header, environment, known, rules, now)
            if verdict.fault is None:
                known[header] = verdict
        if verdict.fault is None and now >= verdict.expires_at:
            return Verdict(fault=_EXPIRED, team_id=verdict.team_id)
        return verdict

    def _fresh(
        self, header: bytes, environment: Environment, known: dict[bytes, Verdict], rules: ProviderTokens, now: float
    ) -> Verdict:
        verdict = self._read(header, environment, rules, now)
        if verdict.fault is not None:
            return verdict
        first = next(iter(known.values()), None)
        if first is not None and (first.team_id, first.key_id) != (verdict.team_id, verdict.key_id):
            return Verdict(fault=_UNRELATED)
        if rules.per_connection and len(known) >= rules.per_connection:
            return Verdict(fault=_TOO_MANY)
        return self._count_update(header, verdict, rules, now)

    def _count_update(self, header: bytes, verdict: Verdict, rules: ProviderTokens, now: float) -> Verdict:
        seen = self._teams.setdefault(verdict.team_id, {})
        for old in [token for token, at in seen.items() if at <= now - rules.window]:
            del seen[old]
        if header not in seen:
            if rules.per_team and len(seen) >= rules.per_team:
                return Verdict(fault=_TOO_MANY)
            seen[header] = now
        return verdict

    def _read(self, header: bytes, environment: Environment, rules: ProviderTokens, now: float) -> Verdict:
        scheme, _, token = header.partition(b" ")
        parts = token.strip().split(b".")
        if scheme.lower() != b"bearer" or len(parts) != 3:
            return Verdict(fault=_INVALID if token.strip() else _MISSING)
        try:
            head, claims = (json.loads(_unbase64(part)) for part in parts[:2])
            team_id, key_id, issued = claims["iss"], head["kid"], claims["iat"]
            well_formed = head["alg"] == "ES256" and len(key_id) == len(team_id) == _KEY_ID_LENGTH
            if not well_formed or isinstance(issued, bool) or not isinstance(issued, int | float):
                return Verdict(fault=_INVALID)
            signature = _unbase64(parts[2])
        except (ValueError, KeyError, TypeError, binascii.Error):
            return Verdict(fault=_INVALID)
        key = self._keys.get((team_id, key_id))
        if len(signature) != 64 or not self._signed(key, parts[0] + b"." + parts[1], signature):
            return Verdict(fault=_INVALID)
        if key is not None and environment not in key.environments:
            return Verdict(fault=_WRONG_ENVIRONMENT)
        if issued > now + rules.future:
            return Verdict(fault=_INVALID)
        if issued + rules.max_age <= now:
            return Verdict(fault=_EXPIRED)
        return Verdict(
            fault=None,
            expires_at=issued + rules.max_age,
            team_id=team_id,
            key_id=key_id,
            topics=key.topics if key else frozenset(),
        )

    def _signed(self, key: ProviderKey | None, signed: bytes, signature: bytes) -> bool:
        if key is None:
            return self._accept_any
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        try:
            key.public_key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def _unbase64(text: bytes) -> bytes:
    return base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
