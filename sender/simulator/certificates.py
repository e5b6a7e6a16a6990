"""A throw-away CA with a server certificate for this machine's loopback names, kept in a directory."""

from __future__ import annotations

import fcntl
import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sender.errors import ConfigurationError

_DAYS = 90
_CLIENT_TOPICS = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")  # Apple: the topics of a push certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Where the files are. `wrong` is a server certificate of a CA that is not in `ca_file`."""

    ca_file: Path
    ca_key_file: Path
    server_file: Path  # certificate and private key
    wrong_file: Path

    @classmethod
    def within(cls, directory: Path) -> Certificates:
        """The names of the files in a directory."""
        return cls(
            ca_file=directory / "ca.pem",
            ca_key_file=directory / "ca-key.pem",
            server_file=directory / "server.pem",
            wrong_file=directory / "wrong-server.pem",
        )


def ensure_certificates(directory: Path) -> Certificates:
    """Make the CA and the server certificates unless the directory has valid ones; safe to call from many processes.

    Raises `ConfigurationError` when the directory cannot be used.
    """
    files = Certificates.within(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _still_good(files):
                _make_all(files)
    except OSError as error:
        raise ConfigurationError(
            f"the simulator cannot keep its certificates in {directory} ({error.strerror}: "
            f"{error.filename or directory}): choose another directory (--directory)"
        ) from None
    return files


def _make_all(files: Certificates) -> None:
    ca_key, ca = _make_ca("APNs simulator CA (throw-away)")
    _write(files.ca_key_file, _key_pem(ca_key))
    _write(files.server_file, _make_server(ca_key, ca))
    _write(files.wrong_file, _make_server(*_make_ca("APNs simulator, a CA that nobody trusts")))
    _write(files.ca_file, ca.public_bytes(serialization.Encoding.PEM), mode=0o644)


def make_client_certificate(files: Certificates, topic: str, path: Path) -> Path:
    """Write a push certificate (certificate and key, PEM) for a bundle id, as the simulator's CA issues them."""
    ca = x509.load_pem_x509_certificate(files.ca_file.read_bytes())
    ca_key = serialization.load_pem_private_key(files.ca_key_file.read_bytes(), None)
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{files.ca_key_file} holds no elliptic-curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.USER_ID, topic),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Apple Push Services: {topic}"),
        ]
    )
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    built = _builder(subject, ca.subject, key.public_key()).add_extension(usage, critical=False)
    certificate = built.sign(ca_key, hashes.SHA256())
    _write(path, certificate.public_bytes(serialization.Encoding.PEM) + _key_pem(key))
    return path


def topics_of(certificate: bytes) -> frozenset[str]:
    """The topics that a client certificate (DER) may push to: its subject's UID and Apple's topics extension."""
    parsed = x509.load_der_x509_certificate(certificate)
    topics = {str(name.value) for name in parsed.subject.get_attributes_for_oid(NameOID.USER_ID)}
    for extension in parsed.extensions:
        if extension.oid == _CLIENT_TOPICS and isinstance(extension.value, x509.UnrecognizedExtension):
            topics.update(_utf8_strings(extension.value.value))
    return frozenset(topics)


def _utf8_strings(der: bytes) -> list[str]:
    """The UTF8Strings in a flat or nested DER sequence, as Apple's topics extension is one."""
    found: list[str] = []
    at = 0
    while at + 2 <= len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        value, at = der[at : at + length], at + length
        if tag == 0x0C:
            found.append(value.decode("utf-8", "replace"))
        elif tag & 0x20:
            found += _utf8_strings(value)
    return found


def _still_good(files: Certificates) -> bool:
    try:
        kept = [x509.load_pem_x509_certificate(path.read_bytes()) for path in (files.ca_file, files.server_file)]
        kept[1].verify_directly_issued_by(kept[0])
    except Exception:
        return False
    soon = datetime.now(UTC) + timedelta(days=2)
    return (
        files.ca_key_file.exists() and files.wrong_file.exists() and all(one.not_valid_after_utc > soon for one in kept)
    )


def _make_ca(name: str) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    built = _builder(subject, subject, key.public_key())
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    built = built.add_extension(_key_usage(ca=True), critical=True)
    built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return key, built.sign(key, hashes.SHA256())


def _make_server(ca_key: ec.EllipticCurvePrivateKey, ca: x509.Certificate) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.DNSName("localhost")]
    names += [x509.IPAddress(ipaddress.ip_address(address)) for address in ("127.0.0.1", "::1")]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    built = _builder(subject, ca.subject, key.public_key())
    built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    built = built.add_extension(issuer, critical=False)
    return built.sign(ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + _key_pem(key)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Replace the file as a whole, readable by its owner only unless it is public."""
    partial = path.with_name(path.name + ".new")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
        file.write(content)
    partial.replace(path)
