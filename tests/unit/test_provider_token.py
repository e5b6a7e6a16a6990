"""Provider tokens: the same bytes everywhere, new ones rarely, and never one that Apple would call too old."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import urlsafe_b64decode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from hypothesis import given, settings
from hypothesis import strategies as st

from sender.apns.credentials import KeyCredential
from sender.apns.provider_token import FROZEN_UNTIL, GRID, ProviderTokens, grid_instant, mint
from sender.errors import CredentialError
from sender.model import CredentialKind, CredentialRef, Environment

GOLDEN_KEY = ec.derive_private_key(0x1D2C3B4A5968778695A4B3C2D1E0F, ec.SECP256R1())
GOLDEN_TOKEN = (
    "eyJhbGciOiJFUzI1NiIsImtpZCI6IktFWTEyMzQ1NjcifQ.eyJpc3MiOiJURUFNMTIzNDU2IiwiaWF0IjoxODAwMDA"
    "wMDAwfQ.7uowKzGrwzlWzFbXy2k1bs1EP4WVNHnn9gqHg57Zsedf1pObZQ-818qAHDpkQSWsWby6AfaJ6vJ1OT1O3xU1mw"
)
START = 1_800_000_000.0

ids = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=10, max_size=10)
instants = st.floats(1_600_000_000, 4_000_000_000)


def write_key(file: Path, key: ec.EllipticCurvePrivateKey = GOLDEN_KEY) -> None:
    beside = file.with_suffix(".new")
    beside.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    beside.replace(file)


@pytest.fixture
def ref(tmp_path: Path) -> CredentialRef:
    file = tmp_path / "AuthKey_KEY1234567.p8"
    write_key(file)
    return CredentialRef(
        kind=CredentialKind.KEY, environment=Environment.PRODUCTION, file=str(file), team_id="TEAM123456"
    )


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def decoded(token: str) -> tuple[dict[str, object], dict[str, object], bytes]:
    header, claims, signature = (urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in token.split("."))
    return json.loads(header), json.loads(claims), signature


def test_the_token_is_this_one_to_the_byte() -> None:
    credential = KeyCredential(team_id="TEAM123456", key_id="KEY1234567", private_key=GOLDEN_KEY)
    assert mint(credential, 1_800_000_000).value == GOLDEN_TOKEN


def test_another_process_mints_the_same_bytes(ref: CredentialRef) -> None:
    code = (
        "import sys; from sender.apns.provider_token import *; from sender.apns.credentials import load_credential;"
        "from sender.model import *; ref = CredentialRef(kind=CredentialKind.KEY, environment=Environment.SANDBOX,"
        "file=sys.argv[1], team_id='TEAM123456'); print(ProviderTokens(ref, clock=lambda: 1.8e9).current().value)"
    )
    other = subprocess.run([sys.executable, "-c", code, ref.file], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == ProviderTokens(ref, clock=Clock()).current().value


def test_the_signature_verifies_and_the_claims_are_apples(ref: CredentialRef) -> None:
    token = ProviderTokens(ref, clock=Clock()).current()
    header, claims, signature = decoded(token.value)
    assert header == {"alg": "ES256", "kid": "KEY1234567"}
    assert claims == {"iss": "TEAM123456", "iat": token.issued_at}
    signed = token.value.rpartition(".")[0].encode()
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    GOLDEN_KEY.public_key().verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))


@given(team=ids, key=ids, now=instants)
def test_a_token_is_between_2_and_42_minutes_old(team: str, key: str, now: float) -> None:
    assert 120 <= now - grid_instant(team, key, now) <= 120 + GRID


@given(team=ids, key=ids, now=instants, later=st.floats(0, GRID))
def test_at_most_two_tokens_serve_any_40_minutes(team: str, key: str, now: float, later: float) -> None:
    first, second = grid_instant(team, key, now), grid_instant(team, key, now + later)
    assert second - first in (0, GRID)


def test_keys_do_not_all_change_at_the_same_instant() -> None:
    shifts = {grid_instant("TEAM123456", f"KEY{number:07}", START) for number in range(50)}
    assert len(shifts) > 40


def test_the_token_changes_exactly_when_it_says(ref: CredentialRef) -> None:
    clock = Clock()
    tokens = ProviderTokens(ref, clock=clock)
    first = tokens.current()
    clock.now = first.next_change - 1
    assert tokens.current() is first
    clock.now = first.next_change
    assert tokens.current().issued_at == first.issued_at + GRID


def test_the_header_is_one_object_until_it_changes(ref: CredentialRef) -> None:
    clock = Clock()
    tokens = ProviderTokens(ref, clock=clock)
    assert tokens.header() is tokens.header()
    assert tokens.header().startswith(b"bearer ey")


@settings(max_examples=50)
@given(steps=st.lists(st.tuples(st.floats(0, 1500), st.booleans()), max_size=30))
def test_no_token_is_used_past_55_minutes_whatever_is_frozen(steps: list[tuple[float, bool]]) -> None:
    clock = Clock()
    tokens = ProviderTokens.__new__(ProviderTokens)
    credential = KeyCredential(team_id="TEAM123456", key_id="KEY1234567", private_key=GOLDEN_KEY)
    tokens.__dict__.update(
        ref=None, fault=None, _clock=clock, _monotonic=lambda: 0.0, _credential=credential, _token=None,
        _header=b"", _frozen=False, _next_look=1.0,
    )  # fmt: skip
    for seconds, freeze in steps:
        clock.now += seconds
        assert 0 <= clock.now - tokens.current().issued_at < FROZEN_UNTIL
        if freeze:
            tokens.freeze()


def test_a_frozen_token_outlives_the_grid_but_not_55_minutes(ref: CredentialRef) -> None:
    clock = Clock()
    tokens = ProviderTokens(ref, clock=clock)
    first = tokens.current()
    assert tokens.freeze()
    clock.now = first.next_change + 60
    assert tokens.current() is first
    clock.now = first.issued_at + FROZEN_UNTIL
    assert tokens.current().issued_at == first.issued_at + GRID


def test_a_replaced_key_is_taken_up(ref: CredentialRef) -> None:
    ticks = Clock()
    tokens = ProviderTokens(ref, clock=Clock(), monotonic=ticks)
    before = tokens.current()
    write_key(Path(ref.file), ec.generate_private_key(ec.SECP256R1()))
    ticks.now += 10
    assert tokens.current().value != before.value
    assert tokens.fault is None


def test_a_file_that_breaks_keeps_the_key_that_was_loaded(ref: CredentialRef) -> None:
    ticks = Clock()
    tokens = ProviderTokens(ref, clock=Clock(), monotonic=ticks)
    before = tokens.current()
    Path(ref.file).write_text("half a key")
    ticks.now += 10
    assert tokens.current() is before
    assert "not a private key" in str(tokens.fault)
    write_key(Path(ref.file))
    ticks.now += 10
    assert tokens.current() is before
    assert tokens.fault is None


def test_a_missing_key_is_an_error_at_the_start(ref: CredentialRef) -> None:
    Path(ref.file).unlink()
    with pytest.raises(CredentialError, match="no such file"):
        ProviderTokens(ref)


def test_the_token_is_not_in_a_repr(ref: CredentialRef) -> None:
    token = ProviderTokens(ref, clock=Clock()).current()
    assert token.value not in repr(token)
