"""HTTP CONNECT tunnels (RFC 9110, 9.3.6) with basic authentication; aioapns's own do not work on Python 3.11."""

from __future__ import annotations

import asyncio
import socket
from base64 import b64encode
from dataclasses import dataclass, field

_LONGEST_HEAD = 16_384


class ProxyError(Exception):
    """Raised when a proxy refuses; the message says what it said. `lasting`: trying again at once will not help."""

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        self.lasting = lasting
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """Where the proxy is, and who we are to it. `repr` does not show the password."""

    host: str
    port: int
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def where(self) -> str:
        """The proxy, for people."""
        return f"the proxy {self.host}:{self.port}"


async def open_tunnel(proxy: Proxy, host: str, port: int) -> socket.socket:
    """A non-blocking socket that ends at `host:port`. The caller limits the time. Raises `ProxyError`, `OSError`."""
    sock = await _connect(proxy.host, proxy.port)
    try:
        await _ask(sock, proxy, host, port)
    except BaseException:
        sock.close()
        raise
    return sock


async def _connect(host: str, port: int) -> socket.socket:
    """The first of the host's addresses, IPv6 or IPv4, that takes the connection."""
    loop = asyncio.get_running_loop()
    failure: OSError | None = None
    for family, kind, number, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        sock.setblocking(False)
        try:
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure or OSError(f"{host} has no address")


async def _ask(sock: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user is not None:
        pair = b64encode(f"{proxy.user}:{proxy.password or ''}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {pair}")
    await loop.sock_sendall(sock, ("\r\n".join(lines) + "\r\n\r\n").encode())
    head = b""
    while b"\r\n\r\n" not in head:
        more = await loop.sock_recv(sock, 4096)
        if not more:
            raise ProxyError(f"{proxy.where} closed the connection before it answered")
        head += more
        if len(head) > _LONGEST_HEAD:
            raise ProxyError(f"{proxy.where} does not answer like an HTTP proxy", lasting=True)
    _judge(proxy, target, head)


def _judge(proxy: Proxy, target: str, head: bytes) -> None:
    first = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    if len(first) < 2 or not first[0].startswith("HTTP/1.") or not first[1].isdigit():
        raise ProxyError(f"{proxy.where} does not answer like an HTTP proxy", lasting=True)
    status = int(first[1])
    if 200 <= status < 300:
        if not head.endswith(b"\r\n\r\n"):  # the server speaks only after our TLS hello
            raise ProxyError(f"{proxy.where} sent something before the tunnel was used", lasting=True)
        return
    if status == 407:
        given = "refused the user and password" if proxy.user is not None else "asks for a user and password"
        raise ProxyError(f"{proxy.where} {given} (SENDER_APNS_PROXY_URL)", lasting=True)
    said = " ".join(first[1:])[:100]
    raise ProxyError(f"{proxy.where} does not connect to {target}: {said}", lasting=status in (403, 405))
