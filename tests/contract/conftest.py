"""What the contract suites of the APNs client share: a key, pushes, and clients on an event loop of their own."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sender.apns.client import open_client
from sender.apns.port import PushClient
from sender.model import Answer, CredentialKind, CredentialRef, Environment, Push, PushHeaders, PushType
from sender.settings import Settings
from sender.simulator import Scenario, Simulator, SimulatorConfig

APP = "com.example.news"
PAYLOAD = b'{"aps":{"alert":{"title":"Spring sale","body":"20 % off today"},"sound":"default"}}'
HEADERS = PushHeaders(topic=APP, push_type=PushType.ALERT, priority=10, expiration=1_900_000_000, collapse_id="sale")

Result = TypeVar("Result")


def push(token: str | None = None, *, payload: bytes = PAYLOAD, headers: PushHeaders = HEADERS) -> Push:
    return Push(token=token or os.urandom(32).hex(), apns_id=str(uuid.uuid4()), payload=payload, headers=headers)


def pushes(count: int, **fields: Any) -> list[Push]:
    return [push(**fields) for _ in range(count)]


@dataclass
class Bench:
    """Runs a test's coroutine with clients that are closed at its end."""

    ref: CredentialRef
    url: str = "https://127.0.0.1:1"
    ca_file: Path | None = None
    protocol: str = "ngh2"
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    clients: list[PushClient] = field(default_factory=list)

    def at(self, server: Any) -> Bench:
        self.url, self.ca_file = server.url, server.ca_file
        return self

    def settings(self, **fields: Any) -> Settings:
        fields = {"apns_production_url": self.url, "apns_sandbox_url": self.url, "apns_ca_file": self.ca_file} | fields
        return Settings(**{"apns_protocol": self.protocol, "apns_connect_timeout": 10.0} | fields)

    def client(self, ref: CredentialRef | None = None, **fields: Any) -> Any:
        """A client; on the event loop only."""
        client = open_client(ref or self.ref, self.settings(**fields))
        if hasattr(client, "_report_to"):
            client._report_to = lambda event, seen: self.events.append((event, seen))
        self.clients.append(client)
        return client

    def run(self, test: Callable[[], Awaitable[Result]], *, timeout: float = 60.0) -> Result:
        async def whole() -> Result:
            try:
                async with asyncio.timeout(timeout):
                    return await test()
            finally:
                for client in self.clients:
                    await client.close(timeout=1.0)
                self.clients.clear()

        return asyncio.run(whole())

    def send(self, what: Sequence[Push], *, timeout: float = 10.0, **fields: Any) -> list[Answer]:
        """The answers of one send call by a fresh client."""

        async def test() -> list[Answer]:
            return await self.client(**fields).send(what, timeout=timeout)

        return self.run(test)


@pytest.fixture
def key_ref(tmp_path: Path) -> CredentialRef:
    file = tmp_path / "AuthKey_KEY1234567.p8"
    key = ec.generate_private_key(ec.SECP256R1())
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return CredentialRef(
        kind=CredentialKind.KEY,
        environment=Environment.PRODUCTION,
        file=str(file),
        team_id="TEAM123456",
        key_id="KEY1234567",
    )


@pytest.fixture
def bench(key_ref: CredentialRef) -> Bench:
    return Bench(ref=key_ref)


@pytest.fixture(scope="session")
def simulator_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    """One simulator for all tests; `simulator` makes it forget and behave first."""
    directory = tmp_path_factory.mktemp("simulator")
    with Simulator(SimulatorConfig(directory=directory, keep_payloads=True)) as running:
        yield running


@pytest.fixture
def simulator(simulator_process: Simulator) -> Simulator:
    simulator_process.control.set_scenario(Scenario())
    simulator_process.control.reset()
    return simulator_process
