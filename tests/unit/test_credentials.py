"""Credentials: what is wrong with a file is said in plain words, and no secret gets out."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs12

from sender.apns.credentials import (
    CertificateCredential,
    KeyCredential,
    check_credential,
    default_key_id,
    load_credential,
    report_credential,
)
from sender.errors import CredentialError
from sender.model import CredentialKind, CredentialRef, Environment

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
APP = "com.example.news"
DEVELOPMENT = x509.ObjectIdentifier("1.2.840.113635.100.6.3.1")
PRODUCTION = x509.ObjectIdentifier("1.2.840.113635.100.6.3.2")
TOPICS = x509.ObjectIdentifier("1.2.840.113635.100.6.3.6")
DER_NULL = b"\x05\x00"


def pem(key: object, encryption: serialization.KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(  # type: ignore[attr-defined,no-any-return]
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption or serialization.NoEncryption()
    )


def key_ref(file: Path, *, team_id: str | None = "TEAM123456", key_id: str | None = None) -> CredentialRef:
    return CredentialRef(
        kind=CredentialKind.KEY,
        environment=Environment.PRODUCTION,
        file=str(file),
        team_id=team_id,
        key_id=key_id,
    )


def certificate_ref(
    file: Path, environment: Environment = Environment.PRODUCTION, passphrase_env: str | None = None
) -> CredentialRef:
    return CredentialRef(
        kind=CredentialKind.CERTIFICATE, environment=environment, file=str(file), passphrase_env=passphrase_env
    )


def topics_der(*topics: str) -> bytes:
    """Apple's list: each topic followed by a sequence that says what it is for."""

    def value(tag: int, data: bytes) -> bytes:
        size = len(data)
        return bytes([tag]) + (bytes([size]) if size < 128 else bytes([0x81, size])) + data

    return value(0x30, b"".join(value(0x0C, each.encode()) + value(0x30, value(0x0C, b"app")) for each in topics))


def make_certificate(
    *, uid: str | None = APP, marks: dict[x509.ObjectIdentifier, bytes] | None = None, days: float = 300
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Apple Push Services: {uid}")]
    if uid:
        names.append(x509.NameAttribute(x509.NameOID.USER_ID, uid))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(x509.Name(names))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=100))
        .not_valid_after(NOW + timedelta(days=days))
    )
    for oid, der in (marks or {}).items():
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, der), critical=False)
    return key, builder.sign(key, hashes.SHA256())


def write_pem(folder: Path, made: tuple[ec.EllipticCurvePrivateKey, x509.Certificate]) -> Path:
    file = folder / "push.pem"
    key, certificate = made
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + pem(key))
    return file


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "AuthKey_KEY1234567.p8"
    file.write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    return file


def fault_of(call: Callable[[], object]) -> str:
    with pytest.raises(CredentialError) as caught:
        call()
    return str(caught.value)


def test_a_key_takes_its_id_from_the_name_that_apple_gave_the_file(key_file: Path) -> None:
    credential = load_credential(key_ref(key_file))
    assert isinstance(credential, KeyCredential)
    assert credential.key_id == "KEY1234567"
    assert default_key_id("renamed.p8") is None


def test_a_keys_report_names_both_environments_and_a_fingerprint(key_file: Path) -> None:
    report = check_credential(key_ref(key_file), APP, NOW)
    assert report.environments == (Environment.PRODUCTION, Environment.SANDBOX)
    assert report.fingerprint.startswith("SHA256:")
    assert report.ends_at is None


def test_all_faults_of_a_key_are_said_at_once(tmp_path: Path) -> None:
    said = fault_of(lambda: load_credential(key_ref(tmp_path / "no.p8", team_id="short")))
    assert "no such file" in said
    assert "'short' is not 10" in said
    assert "key id is missing" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"hello", "not a private key"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "secp384r1 key, not a P-256 key"),
        (pem(rsa.generate_private_key(65537, 2048)), "another kind of key, not a P-256 key"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "another kind of key"),
        (
            pem(ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"x")),
            "the key is encrypted",
        ),
        (
            ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
            "it is a public key",
        ),
        (make_certificate()[1].public_bytes(serialization.Encoding.PEM), "it is a certificate"),
        (b"x" * 300_000, "far too big"),
    ],
)
def test_a_wrong_key_file_is_refused_in_plain_words(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "AuthKey_KEY1234567.p8"
    file.write_bytes(content)
    assert words in fault_of(lambda: load_credential(key_ref(file)))


def test_a_directory_is_not_a_key(tmp_path: Path) -> None:
    assert "it is a directory" in fault_of(lambda: load_credential(key_ref(tmp_path, key_id="KEY1234567")))


def test_what_is_no_file_is_not_a_key_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for file in (tmp_path / "pipe", Path("/dev/zero")):
        fault = fault_of(lambda file=file: load_credential(key_ref(file, key_id="KEY1234567")))
        assert "no file that workers could read" in fault


def test_the_team_id_in_the_place_of_the_key_id_is_noticed(key_file: Path) -> None:
    said = fault_of(lambda: load_credential(key_ref(key_file, team_id="KEY1234567")))
    assert "the same" in said


def test_no_secret_is_in_a_repr_or_an_error(tmp_path: Path, key_file: Path) -> None:
    secret = key_file.read_text().splitlines()[1]
    broken = tmp_path / "AuthKey_KEY7654321.p8"
    broken.write_text(key_file.read_text().replace("-----END PRIVATE KEY-----", ""))
    shown = repr(load_credential(key_ref(key_file))) + fault_of(lambda: load_credential(key_ref(broken)))
    assert secret not in shown


def test_a_universal_certificate_serves_its_topics_in_both_environments(tmp_path: Path) -> None:
    marks = {
        DEVELOPMENT: DER_NULL,
        PRODUCTION: DER_NULL,
        TOPICS: topics_der(APP, f"{APP}.voip", f"{APP}.complication"),
    }
    report = check_credential(certificate_ref(write_pem(tmp_path, make_certificate(marks=marks))), APP, NOW)
    assert report.topics == (APP, f"{APP}.voip", f"{APP}.complication")
    assert report.environments == (Environment.PRODUCTION, Environment.SANDBOX)
    assert report.ends_at == NOW + timedelta(days=300)
    assert report.warnings == ()


def test_a_development_certificate_does_not_serve_production(tmp_path: Path) -> None:
    file = write_pem(tmp_path, make_certificate(marks={DEVELOPMENT: DER_NULL}))
    assert check_credential(certificate_ref(file, Environment.SANDBOX), APP, NOW).topics == (APP,)
    assert "serves sandbox only, not production" in fault_of(lambda: check_credential(certificate_ref(file), APP, NOW))


def test_an_expired_certificate_for_another_topic_has_both_faults_named(tmp_path: Path) -> None:
    file = write_pem(tmp_path, make_certificate(uid="com.example.other", marks={PRODUCTION: DER_NULL}, days=-1))
    said = fault_of(lambda: check_credential(certificate_ref(file), APP, NOW))
    assert "expired on 2027-02-28" in said
    assert "it is for com.example.other and not for com.example.news" in said


def test_an_app_whose_name_begins_alike_is_another_topic(tmp_path: Path) -> None:
    file = write_pem(tmp_path, make_certificate(uid=f"{APP}.watch", marks={PRODUCTION: DER_NULL}))
    assert "not for com.example.news" in fault_of(lambda: check_credential(certificate_ref(file), APP, NOW))


def test_a_certificate_that_is_not_valid_yet_points_at_the_clock(tmp_path: Path) -> None:
    file = write_pem(tmp_path, make_certificate(marks={PRODUCTION: DER_NULL}))
    early = NOW - timedelta(days=200)
    assert "clock" in fault_of(lambda: check_credential(certificate_ref(file), APP, early))


def test_a_certificate_that_ends_soon_or_lacks_apples_marks_is_warned_of(tmp_path: Path) -> None:
    file = write_pem(tmp_path, make_certificate(days=3))
    report = report_credential(certificate_ref(file), NOW)
    assert any("ends in 3 days" in warning for warning in report.warnings)
    assert any("marks" in warning for warning in report.warnings)


def test_a_certificate_without_its_private_key_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "push.pem"
    file.write_bytes(make_certificate()[1].public_bytes(serialization.Encoding.PEM))
    assert "no private key" in fault_of(lambda: load_credential(certificate_ref(file)))


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "push.pem"
    file.write_bytes(make_certificate()[1].public_bytes(serialization.Encoding.PEM) + pem(make_certificate()[0]))
    assert "does not belong" in fault_of(lambda: load_credential(certificate_ref(file)))


@pytest.fixture
def p12_file(tmp_path: Path) -> Path:
    key, certificate = make_certificate(marks={PRODUCTION: DER_NULL})
    file = tmp_path / "push.p12"
    file.write_bytes(
        pkcs12.serialize_key_and_certificates(
            b"push", key, certificate, None, serialization.BestAvailableEncryption(b"secret words")
        )
    )
    return file


def test_a_p12_opens_with_the_passphrase_of_the_named_variable(p12_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEWS_PASSPHRASE", "secret words")
    ref = certificate_ref(p12_file, passphrase_env="NEWS_PASSPHRASE")
    assert check_credential(ref, APP, NOW).topics == (APP,)


@pytest.mark.parametrize(("value", "words"), [("wrong", "passphrase is wrong"), (None, "is not set")])
def test_a_p12_with_a_wrong_or_missing_passphrase_says_so(
    p12_file: Path, monkeypatch: pytest.MonkeyPatch, value: str | None, words: str
) -> None:
    monkeypatch.delenv("NEWS_PASSPHRASE", raising=False)
    if value is not None:
        monkeypatch.setenv("NEWS_PASSPHRASE", value)
    said = fault_of(lambda: load_credential(certificate_ref(p12_file, passphrase_env="NEWS_PASSPHRASE")))
    assert words in said
    assert "secret words" not in said


def test_an_encrypted_pem_needs_its_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = make_certificate(marks={PRODUCTION: DER_NULL})
    file = tmp_path / "push.pem"
    file.write_bytes(
        pem(key, serialization.BestAvailableEncryption(b"open")) + certificate.public_bytes(serialization.Encoding.PEM)
    )
    assert "is encrypted" in fault_of(lambda: load_credential(certificate_ref(file)))
    monkeypatch.setenv("NEWS_PASSPHRASE", "open")
    assert load_credential(certificate_ref(file, passphrase_env="NEWS_PASSPHRASE"))


def test_a_certificate_goes_into_a_tls_context_and_leaves_nothing_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = load_credential(certificate_ref(write_pem(tmp_path, make_certificate())))
    assert isinstance(credential, CertificateCredential)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    credential.load_into(ssl.create_default_context())
    assert list(scratch.iterdir()) == []
