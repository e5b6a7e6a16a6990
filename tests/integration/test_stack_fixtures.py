"""The fixtures that every other test stands on."""

from __future__ import annotations

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from sender.client import Sender
from sender.store.database import Database


def test_the_role_of_the_tests_is_no_superuser_and_owns_its_schema(database: Database) -> None:
    with database.transaction() as transaction:
        row = transaction.row("SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user")
        tables = transaction.rows("SELECT 1 FROM pg_tables WHERE schemaname = %s", [database.schema])
    assert row == {"rolsuper": False, "rolcreatedb": False}
    assert len(tables) > 5


def test_the_broker_asks_for_its_password_and_evicts_nothing(valkey_url: str) -> None:
    client = redis.Redis.from_url(valkey_url)
    assert client.ping()
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    port = client.connection_pool.connection_kwargs["port"]
    open_client = redis.Redis(host="127.0.0.1", port=port, retry=Retry(NoBackoff(), 0))
    try:
        open_client.ping()
    except redis.AuthenticationError:
        return
    raise AssertionError("the broker let somebody in without a password")


def test_a_sender_is_bound_to_the_schema_and_queues_of_its_test(sender: Sender, database: Database) -> None:
    assert sender.settings.database_schema == database.schema
    assert sender.settings.queue("control") != "sender.control"
