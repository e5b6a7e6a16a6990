"""What an Apple push certificate says about itself: topics, environments, and when it ends. Pure: bytes in, values out.

Sources: Apple, "Establishing a certificate-based connection to APNs" and "Sending notification requests to APNs" (the
extensions named there under `apns-topic`); Apple WWDR Certification Practice Statement, section on push certificates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import pkcs12

from sender.model import TOPIC_SUFFIX, Environment

_SANDBOX = x509.ObjectIdentifier("1.2.840.113635.100.6.3.1")
_PRODUCTION = x509.ObjectIdentifier("1.2.840.113635.100.6.3.2")
_VOIP = (
    x509.ObjectIdentifier("1.2.840.113635.100.6.3.3"),
    x509.ObjectIdentifier("1.2.840.113635.100.6.3.4"),
)
_TOPICS = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")

_DER_SEQUENCE = 0x30
_DER_TEXT = (0x0C, 0x13, 0x16)  # UTF8String, PrintableString, IA5String

#: Every topic suffix that a push type may have, longest first, so that ".voip-ptt" is not taken for ".voip".
_SUFFIXES = sorted((suffix for suffix in TOPIC_SUFFIX.values() if suffix), key=len, reverse=True)


def topics_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """The topics that the certificate may push to: Apple's list in it, otherwise the UID of its subject."""
    for extension in certificate.extensions:
        if extension.oid == _TOPICS and isinstance(extension.value, x509.UnrecognizedExtension):
            listed = tuple(_topics_in(extension.value.value))
            if listed:
                return listed
    uids = certificate.subject.get_attributes_for_oid(x509.NameOID.USER_ID)
    return tuple(str(uid.value) for uid in uids)


def environments_of(certificate: x509.Certificate) -> tuple[Environment, ...]:
    """The environments that Apple made the certificate for; empty when Apple's marks are missing."""
    marks = {extension.oid for extension in certificate.extensions}
    if _SANDBOX in marks and _PRODUCTION not in marks:
        return (Environment.SANDBOX,)
    if _PRODUCTION in marks and _SANDBOX not in marks and _TOPICS not in marks:
        return (Environment.PRODUCTION,)
    if marks & {_SANDBOX, _PRODUCTION, _TOPICS, *_VOIP}:
        return (Environment.PRODUCTION, Environment.SANDBOX)
    return ()


def serves(topics: Sequence[str], bundle_id: str) -> bool:
    """Whether one of the topics is the bundle id, alone or with the suffix of a push type."""
    return any(topic == bundle_id or without_suffix(topic) == bundle_id for topic in topics)


def without_suffix(topic: str) -> str:
    """The bundle id of a topic: `com.example.news.voip` is of `com.example.news`."""
    return next((topic.removesuffix(suffix) for suffix in _SUFFIXES if topic.endswith(suffix)), topic)


def validity_faults(certificate: x509.Certificate, now: datetime) -> list[str]:
    """What is wrong with the certificate's dates at `now` (aware), in plain words."""
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if ends <= now:
        return [f"the certificate expired on {ends:%Y-%m-%d %H:%M} UTC: renew it at developer.apple.com"]
    if begins > now:
        return [f"the certificate is valid only from {begins:%Y-%m-%d %H:%M} UTC: is this machine's clock right?"]
    return []


def parse_pkcs12(
    data: bytes, passphrase: bytes | None
) -> tuple[PrivateKeyTypes, x509.Certificate, list[x509.Certificate]]:
    """Key, certificate and the certificates above it in a .p12. Raises `ValueError` in plain words."""
    try:
        key, certificate, others = pkcs12.load_key_and_certificates(data, passphrase)
    except ValueError as error:
        if "password" in str(error).lower():
            raise ValueError("the passphrase is wrong (or missing: name its environment variable)") from None
        raise ValueError("it is not a .p12 file (or is encrypted in a way that is no longer supported)") from None
    except Exception:  # cryptography has several classes for ciphers that OpenSSL 3 has dropped
        raise ValueError(
            "it is encrypted with a cipher that is no longer supported: convert it with "
            "`openssl pkcs12 -legacy -in old.p12 -nodes | openssl pkcs12 -export -out new.p12`"
        ) from None
    if key is None or certificate is None:
        missing = "private key" if key is None else "certificate"
        raise ValueError(f"it holds no {missing}: export the certificate together with its private key")
    return key, certificate, others


def parse_pem(
    data: bytes, passphrase: bytes | None
) -> tuple[PrivateKeyTypes, x509.Certificate, list[x509.Certificate]]:
    """Key, certificate and the certificates above it in a .pem. Raises `ValueError` in plain words."""
    try:
        certificates = x509.load_pem_x509_certificates(data)
    except ValueError:
        raise ValueError("it holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from None
    if b"PRIVATE KEY-----" not in data:
        raise ValueError("it holds no private key: put the certificate and its private key into one .pem file")
    try:
        key = serialization.load_pem_private_key(_private_part(data), passphrase)
    except TypeError:
        if passphrase is None:
            raise ValueError("its private key is encrypted: name the passphrase's environment variable") from None
        key = serialization.load_pem_private_key(_private_part(data), None)  # a passphrase that is not needed
    except ValueError:
        said = "the passphrase is wrong" if passphrase else "its private key cannot be read"
        raise ValueError(said) from None
    leaf = next((each for each in certificates if _belongs(key, each)), None)
    if leaf is None:
        raise ValueError("its private key does not belong to its certificate")
    return key, leaf, [each for each in certificates if each is not leaf]


def _belongs(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*form) == certificate.public_key().public_bytes(*form)


def _private_part(data: bytes) -> bytes:
    """The lines of the private key alone: other blocks before it would hide it."""
    lines = data.splitlines(keepends=True)
    starts = [number for number, line in enumerate(lines) if b"-----BEGIN" in line and b"PRIVATE KEY" in line]
    ends = [number for number, line in enumerate(lines) if b"-----END" in line and b"PRIVATE KEY" in line]
    return b"".join(lines[starts[0] : ends[0] + 1]) if starts and ends else data


def _topics_in(der: bytes) -> Iterator[str]:
    """The texts of the outermost sequence: topics alternate with sequences that say what each is for."""
    try:
        outer = list(_der_values(der))
        inner = _der_values(outer[0][1]) if outer and outer[0][0] == _DER_SEQUENCE else iter(())
        yield from (value.decode("utf-8", "replace") for tag, value in inner if tag in _DER_TEXT)
    except IndexError:
        return


def _der_values(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(tag, contents) of the values that stand one after the other (ITU-T X.690, 8.1)."""
    at = 0
    while at < len(data):
        tag, length, start = data[at], data[at + 1], at + 2
        if length & 0x80:
            count = length & 0x7F
            length, start = int.from_bytes(data[start : start + count], "big"), start + count
        yield tag, data[start : start + length]
        at = start + length
