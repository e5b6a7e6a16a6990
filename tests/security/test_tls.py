"""The URLs of docs/security.md: PostgreSQL and Redis with TLS, checked certificates and passwords."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from kombu import Connection
from psycopg.conninfo import conninfo_to_dict
from pydantic import SecretStr

from config.celery import make_app
from sender.doctor.findings import Status
from sender.doctor.servers import check_broker
from sender.errors import DatabaseUnavailableError
from sender.nudge import nudge
from sender.settings import Settings
from sender.simulator.certificates import Certificates, ensure_certificates, make_client_certificate
from sender.store.database import Database
from sender.store.migrate import status
from tests.security.relay import Relay


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return ensure_certificates(tmp_path_factory.mktemp("ca"))


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.fixture
def postgres(postgres_url: str, certificates: Certificates) -> Iterator[Relay]:
    """The session's PostgreSQL behind TLS."""
    parts = conninfo_to_dict(postgres_url)

    def connect() -> socket.socket:
        if str(parts["host"]).startswith("/"):
            made = socket.socket(socket.AF_UNIX)
            made.connect(f"{parts['host']}/.s.PGSQL.{parts.get('port', 5432)}")
            return made
        return socket.create_connection((parts["host"], int(parts.get("port") or 5432)))

    with Relay(connect, certificates.server_file, postgres=True) as relay:
        yield relay


def database_url(postgres_url: str, relay: Relay, host: str = "localhost", **options: str) -> str:
    parts = conninfo_to_dict(postgres_url)
    login = f"{parts['user']}:{quote(str(parts['password']), safe='')}"
    rest = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    return f"postgresql://{login}@{host}:{relay.port}/{parts['dbname']}?hostaddr=127.0.0.1&{rest}"


def test_postgresql_with_a_checked_certificate(
    postgres_url: str, database: Database, postgres: Relay, certificates: Certificates
) -> None:
    url = database_url(postgres_url, postgres, sslmode="verify-full", sslrootcert=str(certificates.ca_file))
    settings = Settings(database_url=SecretStr(url), database_schema=database.schema)
    tls = Database(settings.require_database_url(), schema=database.schema)
    with tls.transaction() as transaction:
        assert transaction.connection.pgconn.ssl_in_use
        assert transaction.execute("SELECT count(*) FROM {s}.devices").fetchone() == (0,)
    tls.close()
    assert status(url, database.schema).up_to_date  # alembic's way to the same database
    assert postgres.encrypted >= 2 and postgres.plain == 0


@pytest.mark.parametrize(
    ("host", "ca", "words"),
    [
        ("localhost", "wrong", "certificate verify failed"),
        ("db.example", "right", "does not match host name"),
    ],
)
def test_a_postgresql_with_another_certificate_is_refused_in_a_word_without_the_password(
    postgres_url: str, postgres: Relay, certificates: Certificates, tmp_path: Path, host: str, ca: str, words: str
) -> None:
    other = ensure_certificates(tmp_path / "other")
    root = certificates.ca_file if ca == "right" else other.ca_file
    url = database_url(postgres_url, postgres, host, sslmode="verify-full", sslrootcert=str(root))
    database = Database(url, schema="public", timeout=2)
    with pytest.raises(DatabaseUnavailableError, match=words) as caught, database.transaction():
        pass
    database.close()
    assert str(conninfo_to_dict(postgres_url)["password"]) not in str(caught.value)


# --- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def valkey(valkey_url: str, certificates: Certificates) -> Iterator[Relay]:
    """The session's Valkey behind TLS."""
    parts = urlsplit(valkey_url)
    address = (parts.hostname or "127.0.0.1", parts.port or 6379)
    with Relay(lambda: socket.create_connection(address), certificates.server_file) as relay:
        yield relay


def broker_url(valkey_url: str, relay: Relay, host: str = "localhost", **options: str) -> str:
    parts = urlsplit(valkey_url)
    rest = "&".join(f"{name}={quote(value, safe='')}" for name, value in options.items())
    return f"rediss://:{parts.password}@{host}:{relay.port}{parts.path}?{rest}"


def with_broker(settings: Settings, url: str) -> Settings:
    """The settings as they are read: with what is added to a URL."""
    return Settings(**{**settings.model_dump(), "broker_url": url})


def test_a_redis_whose_certificate_is_for_another_host_is_refused(
    settings: Settings, valkey_url: str, certificates: Certificates
) -> None:
    parts = urlsplit(valkey_url)
    address = (parts.hostname or "127.0.0.1", parts.port or 6379)
    with Relay(lambda: socket.create_connection(address), certificates.server_file, address="127.0.0.2") as relay:
        options = {"ssl_ca_certs": str(certificates.ca_file)}
        assert not nudge(with_broker(settings, broker_url(valkey_url, relay, "127.0.0.2", **options)))


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("rediss://h:1/0", "rediss://h:1/0?ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_ca_certs=/ca", "rediss://h:1/0?ssl_ca_certs=/ca&ssl_cert_reqs=required"),
        ("rediss://h:1/0?ssl_cert_reqs=none", "rediss://h:1/0?ssl_cert_reqs=none"),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_a_certificate_is_checked_unless_a_person_says_not_to(given: str, used: str) -> None:
    assert Settings(broker_url=SecretStr(given)).require_broker_url() == used


def test_redis_with_a_checked_certificate(
    settings: Settings, valkey_url: str, valkey: Relay, certificates: Certificates
) -> None:
    url = broker_url(valkey_url, valkey, ssl_cert_reqs="required", ssl_ca_certs=str(certificates.ca_file))
    tls = with_broker(settings, url)
    app = make_app(tls)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, timeout=10)
        app.send_task("sender.tick", connection=connection, queue=tls.queue("control"))
    assert nudge(tls)
    with Connection(url) as connection, connection.channel() as channel:
        queue = channel.queue_declare(tls.queue("control"), passive=False)
        assert queue.message_count == 2
        channel.queue_purge(tls.queue("control"))
    assert {finding.status for finding in check_broker(tls)} <= {Status.OK, Status.WARNING}
    assert valkey.encrypted >= 4


def test_a_redis_with_another_certificate_is_refused(
    settings: Settings, valkey_url: str, valkey: Relay, tmp_path: Path
) -> None:
    other = ensure_certificates(tmp_path / "other")
    password = urlsplit(valkey_url).password or "x"
    for options in (
        {"ssl_ca_certs": str(other.ca_file)},
        {"ssl_cert_reqs": "required", "ssl_ca_certs": str(other.ca_file)},
        {},
    ):
        tls = with_broker(settings, broker_url(valkey_url, valkey, **options))
        assert not nudge(tls), options
        found = list(check_broker(tls))
        assert [finding.status for finding in found] == [Status.FAILED], options
        assert password not in str(found)
    assert valkey.encrypted == 0


def test_a_redis_that_wants_a_client_certificate_gets_it(
    settings: Settings, valkey_url: str, certificates: Certificates, tmp_path: Path
) -> None:
    client = make_client_certificate(certificates, "com.example", tmp_path / "client.pem")
    parts = urlsplit(valkey_url)
    address = (parts.hostname or "127.0.0.1", parts.port or 6379)
    with Relay(
        lambda: socket.create_connection(address), certificates.server_file, client_ca=certificates.ca_file
    ) as relay:
        options = {"ssl_cert_reqs": "required", "ssl_ca_certs": str(certificates.ca_file)}
        without = with_broker(settings, broker_url(valkey_url, relay, **options))
        assert not nudge(without)
        options |= {"ssl_certfile": str(client), "ssl_keyfile": str(client)}
        url = broker_url(valkey_url, relay, **options)
        assert nudge(with_broker(settings, url))
        assert parse_qs(urlsplit(url).query)["ssl_certfile"] == [str(client)]
