"""Where Flower is reached, and whether it answers."""

from __future__ import annotations

import http.client
import os
import secrets
import socket
from dataclasses import dataclass, field

from sender.errors import ConfigurationError
from sender.settings import Settings

PORTS_TRIED = 100
EVERY_INTERFACE = {"", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Flower:
    """One Flower: its address and port, and the password to log in with."""

    address: str
    port: int
    password: str = field(repr=False)

    @property
    def url(self) -> str:
        """Where people reach it."""
        host = self._host()
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def answers(self) -> bool:
        """Whether it serves requests yet."""
        connection = http.client.HTTPConnection(self._host(), self.port, timeout=2)
        try:
            connection.request("GET", "/healthcheck")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _host(self) -> str:
        return "127.0.0.1" if self.address in EVERY_INTERFACE else self.address


def choose_flower(settings: Settings) -> Flower:
    """The wanted port or the next free one, the configured password or a new one.

    Raises `ConfigurationError` when no port is free.
    """
    return Flower(
        address=settings.flower_address,
        port=free_port(settings.flower_address, settings.flower_port),
        password=settings.flower_password.get_secret_value() if settings.flower_password else secrets.token_urlsafe(12),
    )


def free_port(address: str, wanted: int) -> int:
    """The wanted port, or the next one that is free (0: any). Raises `ConfigurationError` when there is none."""
    cause = "no such port"
    for port in range(wanted, min(wanted + PORTS_TRIED, 65536)) if wanted else (0,):
        try:
            return _probe(address, port)
        except OSError as error:
            cause = error.strerror or str(error)
    raise ConfigurationError(
        f"Flower finds no port on {address} from {wanted} on ({cause}): set SENDER_FLOWER_ADDRESS and "
        "SENDER_FLOWER_PORT, or run without it (--no-flower)"
    )


def check_port(address: str, port: int) -> None:
    """Raises `ConfigurationError` when nothing can listen there now: Flower itself would end with a traceback."""
    try:
        _probe(address, port)
    except OSError as error:
        raise ConfigurationError(
            f"Flower cannot listen on {address}, port {port} ({_cause(error)}): set SENDER_FLOWER_ADDRESS and "
            "SENDER_FLOWER_PORT; it may be running already (`sender up` has one)"
        ) from None


def _cause(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and not isinstance(error, socket.gaierror) else str(error)


def _probe(address: str, port: int) -> int:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as probe:
        return int(probe.getsockname()[1])
