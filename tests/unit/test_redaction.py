"""What is cut out of logs and error messages."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import psycopg
import pytest
import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from config.logs import configure_logging
from sender.redaction import redact, redact_value
from sender.settings import Settings

TOKEN = "0a1b2c3d" * 8
JWT = "eyJhbGciOiJFUzI1NiIsImtpZCI6IktFWSJ9.eyJpc3MiOiJURUFNIiwiaWF0IjoxfQ.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
DETAIL = f"duplicate key value\nDETAIL:  Key (token, user)=({TOKEN}, anna@example.com) already exists.\nLINE 1: SELECT"


def private_key() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def test_a_token_keeps_its_beginning_only() -> None:
    assert redact(f"token={TOKEN} sent") == "token=0a1b2c3d… sent"


def test_a_provider_token_is_gone_wherever_it_stands() -> None:
    for text in (JWT, f"authorization: bearer {JWT}", f'{{"a": "{JWT}"}}', f"b'bearer {JWT}'"):
        assert JWT[3:20] not in redact(text)
        assert JWT[-20:] not in redact(text)


def test_a_private_key_is_gone_also_when_it_is_cut_off() -> None:
    key = private_key()
    for text in (f"cannot read {key} of it", f"x {key[:90]}", repr(key)):
        assert key[30:60] not in redact(text)
    assert redact(f"a {key} b") == "a (a private key)\n b"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://sender:hunter2@db.example/sender",
        "rediss://:hunter2@cache:6380/0",
        "http://proxy:hunter2@p:3128",
        "redis://u:hunter2@x@host/0",
        "host=db password=hunter2 user=x",
        "host=db password='hunter2 three' user=x",
    ],
)
def test_a_password_is_gone_and_the_host_stays(url: str) -> None:
    assert "hunter2" not in redact(f"cannot reach {url}: refused")
    assert "refused" in redact(f"cannot reach {url}: refused")


def test_a_url_without_a_password_stays() -> None:
    text = "https://api.push.apple.com:443/x, http://127.0.0.1:5555, redis://host:6379/0 of user@example.com"
    assert redact(text) == text


def test_the_values_of_rows_in_a_database_error_are_gone_and_its_message_stays() -> None:
    text = redact(DETAIL)
    assert "anna" not in text and "0a1b" not in text
    assert text.startswith("duplicate key value\nDETAIL: …") and text.endswith("LINE 1: SELECT")


def test_a_real_database_error_shows_no_value(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TEMP TABLE t (who text PRIMARY KEY, n int CHECK (n > 0))")
        for who, number in (("anna", 1), ("anna", 1), ("berta", -1)):
            try:
                with connection.transaction():
                    connection.execute("INSERT INTO t VALUES (%s, %s)", (who, number))
            except psycopg.Error as error:
                assert who in str(error)
                assert who not in redact(str(error))
        copy = connection.cursor().copy("COPY t FROM STDIN")
        with pytest.raises(psycopg.Error) as caught, copy as stream:
            stream.write("clara\tnone\n")
        assert "clara" in str(caught.value) or "none" in str(caught.value)
        assert "clara" not in redact(str(caught.value))


def test_ids_times_and_uuids_stay() -> None:
    text = "campaign=spring-2027 batch=123456789012 apns_id=123e4567-e89b-12d3-a456-426614174000 2027-01-01T00:00:00Z"
    assert redact(text) == text
    assert redact_value({"batch": 7, "rate": 1.5, "done": True, "x": None}) == {
        "batch": 7,
        "rate": 1.5,
        "done": True,
        "x": None,
    }


def test_what_is_nested_or_is_no_text_is_redacted_too() -> None:
    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError("no repr")

    shown = redact_value({"a": [TOKEN, {"b": (JWT,)}], "c": ValueError(DETAIL), "d": TOKEN.encode(), "e": Odd()})
    assert TOKEN not in str(shown) and JWT not in str(shown) and "anna" not in str(shown)


@given(st.text(), st.text(alphabet="0123456789abcdefABCDEF", min_size=16, max_size=200), st.text())
def test_no_text_around_it_saves_a_token(before: str, token: str, after: str) -> None:
    assert token not in redact(before + token + after)


@given(st.text())
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


# --- log lines --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["json", "console"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a process of ours writes to standard error, in either format."""
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    configure_logging(Settings(log_format=request.param, log_level="debug"))
    yield stream
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_no_line_of_ours_or_of_a_library_shows_a_secret(log: io.StringIO) -> None:
    key = private_key()
    ours = structlog.get_logger("sender.test")
    ours.info("token_seen", token=TOKEN, more={"url": "redis://:hunter2@h/0"})
    logging.getLogger("some.library").warning("header %s of %s", JWT, key)
    for write in (ours.exception, logging.getLogger("another.library").exception):
        try:
            int(f"{DETAIL} {TOKEN}")
        except ValueError:
            write("it_broke")
    text = log.getvalue()
    assert "0a1b2c3d" in text and "ValueError" in text and "it_broke" in text
    for secret in (TOKEN, JWT[3:20], key[30:60], "hunter2", "anna"):
        assert secret not in text


def test_a_json_line_stays_json(log: io.StringIO, request: pytest.FixtureRequest) -> None:
    structlog.get_logger("sender.test").error("it_broke", error=DETAIL, key=private_key(), number=7)
    line = log.getvalue().strip()
    if line.startswith("{"):
        assert json.loads(line)["number"] == 7
    assert "anna" not in line
