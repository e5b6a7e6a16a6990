"""TLS before a server that has none: the embedded PostgreSQL and Valkey are built without it."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # PostgreSQL's protocol, "SSL Session Encryption"


class Relay:
    """`with Relay(…) as relay:` listens on `relay.port`, ends TLS there, and passes on what is inside of it."""

    def __init__(
        self,
        connect: Callable[[], socket.socket],
        certificate: Path,
        *,
        postgres: bool = False,
        client_ca: Path | None = None,
        address: str = "127.0.0.1",
    ) -> None:
        self._connect = connect
        self._postgres = postgres
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        if client_ca is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
            self._context.load_verify_locations(client_ca)
        self._listener = socket.create_server((address, 0))
        self.port: int = self._listener.getsockname()[1]
        self.encrypted = 0  # connections whose handshake was completed
        self.plain = 0  # connections that spoke without TLS

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError), client:
            if self._postgres:
                if client.recv(8) != _SSL_REQUEST:
                    self.plain += 1
                    return
                client.sendall(b"S")
            with self._context.wrap_socket(client, server_side=True) as inside, self._connect() as server:
                self.encrypted += 1
                threading.Thread(target=_pump, args=(server, inside), daemon=True).start()
                _pump(inside, server)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError, ssl.SSLError, ValueError):
        while data := source.recv(65536):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
