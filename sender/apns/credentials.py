"""Reads and checks credentials: .p8 signing keys and push certificates. Secrets stay in memory and out of every text.

A `CredentialRef` says where a credential is kept; only this module follows it. Needs nothing but `cryptography`, so
that the plain install can check what is added.
"""

from __future__ import annotations

import os
import re
import secrets
import ssl
import tempfile
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from sender.apns import certificates
from sender.errors import CredentialError
from sender.model import CredentialKind, CredentialRef, Environment

_LARGEST_FILE = 256 * 1024
_ID = re.compile(r"[A-Z0-9]{10}")
_KEY_FILE_NAME = re.compile(r"AuthKey_([A-Z0-9]{10})\.p8")
_ENDS_SOON = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCredential:
    """A signing key, ready to mint provider tokens. `repr` shows no secret."""

    team_id: str
    key_id: str
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateCredential:
    """A client certificate with its private key. `repr` shows no secret."""

    certificate: x509.Certificate = field(repr=False)
    chain: tuple[x509.Certificate, ...] = field(repr=False)
    private_key: PrivateKeyTypes = field(repr=False)

    def load_into(self, context: ssl.SSLContext) -> None:
        """Make `context` present the certificate.

        `ssl` reads files only: the key goes through a temporary file of mode 0600, encrypted with a random passphrase
        that never leaves memory, and removed before this returns.
        """
        passphrase = secrets.token_hex(32).encode()
        pem = self.private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(passphrase),
        )
        above = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (self.certificate, *self.chain))
        handle, name = tempfile.mkstemp(prefix="apns-", suffix=".pem")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(above + pem)
            context.load_cert_chain(name, password=passphrase)
        finally:
            Path(name).unlink(missing_ok=True)


Credential: TypeAlias = KeyCredential | CertificateCredential


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialReport:
    """What a credential serves, for `apps add` and `apps show`; holds no secret."""

    kind: CredentialKind
    environments: tuple[Environment, ...]  # a key's are not written in it: both
    topics: tuple[str, ...]  # empty: every topic of the team
    team_id: str | None
    key_id: str | None
    subject: str | None  # of a certificate
    ends_at: datetime | None  # of a certificate; keys have no end
    fingerprint: str  # "SHA256:…" of the public key, as in openssl pkey -pubout -outform DER | sha256sum
    warnings: tuple[str, ...]


def default_key_id(file: str | Path) -> str | None:
    """The key id in a file's name as Apple gives it, AuthKey_XXXXXXXXXX.p8; None when it has another name."""
    match = _KEY_FILE_NAME.fullmatch(Path(file).name)
    return match[1] if match else None


def load_credential(ref: CredentialRef) -> Credential:
    """Read the credential that `ref` points at. Raises `CredentialError` with every fault in plain words."""
    return _load_key(ref) if ref.kind is CredentialKind.KEY else _load_certificate(ref)


def check_credential(ref: CredentialRef, bundle_id: str, now: datetime) -> CredentialReport:
    """Check that the credential can be read and serves `bundle_id` in its environment at `now` (aware).

    Raises `CredentialError` with every fault in plain words.
    """
    credential = load_credential(ref)
    if isinstance(credential, KeyCredential):
        return _report_key(credential)
    report = _report_certificate(credential, now)
    faults = certificates.validity_faults(credential.certificate, now)
    if not report.topics:
        faults.append("it names no topic (no UID in its subject): it is not a push certificate")
    elif not certificates.serves(report.topics, bundle_id):
        faults.append(f"it is for {', '.join(report.topics)} and not for {bundle_id}")
    if ref.environment not in report.environments:
        only = " and ".join(report.environments)
        faults.append(f"it serves {only} only, not {ref.environment}: add it with --environment {only}")
    if faults:
        raise CredentialError(f"certificate {ref.file}", faults)
    return report


def report_credential(ref: CredentialRef, now: datetime) -> CredentialReport:
    """What the credential serves, without judging it (an expired certificate is reported, too)."""
    credential = load_credential(ref)
    if isinstance(credential, KeyCredential):
        return _report_key(credential)
    return _report_certificate(credential, now)


# --- keys ------------------------------------------------------------------------------------------------------------


def _load_key(ref: CredentialRef) -> KeyCredential:
    key_id = ref.key_id or default_key_id(ref.file)
    faults = _id_faults(ref.team_id, key_id)
    private_key = None
    try:
        private_key = _parse_key(_read(ref.file))
    except ValueError as error:
        faults.insert(0, str(error))
    if faults or private_key is None:
        raise CredentialError(f"key {ref.file}", faults)
    return KeyCredential(team_id=str(ref.team_id), key_id=str(key_id), private_key=private_key)


def _id_faults(team_id: str | None, key_id: str | None) -> list[str]:
    faults = []
    if not team_id:
        faults.append("the team id is missing: it stands at the top right of developer.apple.com/account")
    elif not _ID.fullmatch(team_id):
        faults.append(f"team id {team_id!r} is not 10 capital letters and digits")
    if not key_id:
        faults.append("the key id is missing, and the file's name is not AuthKey_XXXXXXXXXX.p8 to tell it")
    elif not _ID.fullmatch(key_id):
        faults.append(f"key id {key_id!r} is not 10 capital letters and digits")
    if team_id and team_id == key_id:
        faults.append("team id and key id are the same: one of them is in the wrong place")
    return faults


def _parse_key(data: bytes) -> ec.EllipticCurvePrivateKey:
    if b"ENCRYPTED" in data:
        raise ValueError("the key is encrypted: APNs signing keys from Apple are not; use the .p8 file as downloaded")
    if b"-----BEGIN CERTIFICATE-----" in data and b"PRIVATE KEY-----" not in data:
        raise ValueError("it is a certificate and not a signing key: give it as a certificate")
    if b"PUBLIC KEY-----" in data:
        raise ValueError("it is a public key: the signing key is the .p8 file downloaded from Apple")
    try:
        key = serialization.load_pem_private_key(data, None)
    except (ValueError, TypeError):
        raise ValueError("it is not a private key in PEM form: use the .p8 file downloaded from Apple") from None
    except Exception:  # cryptography's UnsupportedAlgorithm and the like
        raise ValueError("its kind of key is not supported: APNs signing keys are P-256 keys") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        found = f"a {key.curve.name} key" if isinstance(key, ec.EllipticCurvePrivateKey) else "another kind of key"
        raise ValueError(f"it is {found}, not a P-256 key: it is no APNs signing key")  # noqa: TRY004
    return key


def _report_key(credential: KeyCredential) -> CredentialReport:
    return CredentialReport(
        kind=CredentialKind.KEY,
        environments=(Environment.PRODUCTION, Environment.SANDBOX),
        topics=(),
        team_id=credential.team_id,
        key_id=credential.key_id,
        subject=None,
        ends_at=None,
        fingerprint=_fingerprint(credential.private_key),
        warnings=(),
    )


# --- certificates ----------------------------------------------------------------------------------------------------


def _load_certificate(ref: CredentialRef) -> CertificateCredential:
    try:
        data = _read(ref.file)
        passphrase = _passphrase(ref.passphrase_env)
        if b"-----BEGIN" in data:
            key, certificate, chain = certificates.parse_pem(data, passphrase)
        else:
            key, certificate, chain = certificates.parse_pkcs12(data, passphrase)
    except ValueError as error:
        raise CredentialError(f"certificate {ref.file}", [str(error)]) from None
    return CertificateCredential(certificate=certificate, chain=tuple(chain), private_key=key)


def _passphrase(name: str | None) -> bytes | None:
    if name is None:
        return None
    value = os.environ.get(name)
    if value is None:
        raise ValueError(f"the environment variable {name}, which should hold its passphrase, is not set")
    return value.encode()


def _report_certificate(credential: CertificateCredential, now: datetime) -> CredentialReport:
    certificate = credential.certificate
    environments = certificates.environments_of(certificate)
    warnings = []
    if not environments:
        warnings.append("Apple's marks of a push certificate are missing in it: Apple's servers will not accept it")
    ends_at = certificate.not_valid_after_utc
    if now < ends_at < now + _ENDS_SOON:
        warnings.append(f"it ends in {(ends_at - now).days} days: renew it at developer.apple.com")
    return CredentialReport(
        kind=CredentialKind.CERTIFICATE,
        environments=environments or (Environment.PRODUCTION, Environment.SANDBOX),
        topics=certificates.topics_of(certificate),
        team_id=None,
        key_id=None,
        subject=certificate.subject.rfc4514_string(),
        ends_at=ends_at,
        fingerprint=_fingerprint(credential.private_key),
        warnings=tuple(warnings),
    )


# --- both ------------------------------------------------------------------------------------------------------------


def _read(file: str) -> bytes:
    """The file's bytes. Raises `ValueError` in plain words."""
    path = Path(file)
    try:
        if path.is_dir():
            raise ValueError("it is a directory")
        if path.exists() and not path.is_file():  # a pipe or a device is waited for without end, and read only once
            raise ValueError("it is no file that workers could read again")
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError("it is far too big to be a key or a certificate")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ValueError("there is no such file") from None
    except PermissionError:
        raise ValueError("it may not be read by this user") from None
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    if not data.strip():
        raise ValueError("it is empty")
    return data


def _fingerprint(key: PrivateKeyTypes) -> str:
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return f"SHA256:{sha256(public).hexdigest()}"
