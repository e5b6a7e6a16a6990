"""Opens TLS connections for HTTP/2: straight or through an HTTP CONNECT proxy, with errors in plain words."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote, urlsplit

from sender.apns.credentials import CertificateCredential
from sender.apns.proxy import Proxy, ProxyError, open_tunnel
from sender.errors import ConfigurationError
from sender.model import Environment
from sender.settings import Settings, is_readable

AnyProtocol = TypeVar("AnyProtocol", bound=asyncio.Protocol)

_SHUTDOWN = 1.0  # seconds to wait for the peer's half of the TLS goodbye


class ConnectError(Exception):
    """Raised when no connection comes about; the message says why. `lasting`: trying again at once will not help."""

    def __init__(self, cause: str, *, lasting: bool = False) -> None:
        self.lasting = lasting
        super().__init__(cause)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server and the way to it."""

    host: str
    port: int
    proxy: Proxy | None = field(default=None, repr=False)

    @property
    def authority(self) -> str:
        """What goes into `:authority`: the port only when it is not 443."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


def endpoint_of(settings: Settings, environment: Environment) -> Endpoint:
    """The endpoint of an environment. Raises `ConfigurationError` when the proxy's URL is wrong."""
    production = environment is Environment.PRODUCTION
    parts = urlsplit(settings.apns_production_url if production else settings.apns_sandbox_url)
    return Endpoint(host=parts.hostname or "", port=parts.port or 443, proxy=_proxy_of(settings))


def _proxy_of(settings: Settings) -> Proxy | None:
    if settings.apns_proxy_url is None:
        return None
    url = settings.apns_proxy_url.get_secret_value()
    if not is_readable(url) or not (parts := urlsplit(url)).hostname or parts.scheme != "http":
        raise ConfigurationError(
            "SENDER_APNS_PROXY_URL must look like http://user:password@host:3128 (HTTP CONNECT), with special "
            "characters in the password percent-encoded"
        )
    return Proxy(
        host=parts.hostname,
        port=parts.port or 3128,
        user=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
    )


def tls_context(settings: Settings, certificate: CertificateCredential | None = None) -> ssl.SSLContext:
    """A context for APNs: TLS 1.2 or newer, HTTP/2, and the client certificate if there is one.

    Raises `ConfigurationError` when the CA file cannot be used.
    """
    file = settings.apns_ca_file
    try:
        context = ssl.create_default_context(cafile=str(file) if file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"SENDER_APNS_CA_FILE {file}: {error.strerror or error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        certificate.load_into(context)
    return context


async def dial(
    endpoint: Endpoint, context: ssl.SSLContext, factory: Callable[[], AnyProtocol], *, timeout: float
) -> AnyProtocol:
    """Connect, through the proxy if there is one, and do the TLS handshake, all within `timeout` seconds.

    Raises `ConnectError`.
    """
    loop = asyncio.get_running_loop()
    stage = "the proxy" if endpoint.proxy else "the server"
    try:
        async with asyncio.timeout(timeout):
            if endpoint.proxy is None:
                transport, protocol = await loop.create_connection(
                    factory, endpoint.host, endpoint.port, ssl=context,
                    ssl_handshake_timeout=timeout, ssl_shutdown_timeout=_SHUTDOWN, happy_eyeballs_delay=0.25,
                )  # fmt: skip
            else:
                tunnel = await open_tunnel(endpoint.proxy, endpoint.host, endpoint.port)
                stage = "the server behind the proxy"
                transport, protocol = await loop.create_connection(
                    factory, sock=tunnel, ssl=context, server_hostname=endpoint.host,
                    ssl_handshake_timeout=timeout, ssl_shutdown_timeout=_SHUTDOWN,
                )  # fmt: skip
    except TimeoutError:
        raise ConnectError(f"{stage} did not answer within {timeout:g} s") from None
    except (OSError, ProxyError, UnicodeError) as error:
        raise ConnectError(in_words(error, endpoint), lasting=_lasts(error)) from None
    _keep_alive(transport.get_extra_info("socket"))
    if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
        transport.abort()
        raise ConnectError(f"{endpoint.authority} does not speak HTTP/2", lasting=True)
    return protocol


def in_words(error: BaseException, endpoint: Endpoint) -> str:
    """What went wrong, for somebody who does not read OpenSSL."""
    where = endpoint.authority
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "; a simulator's or proxy's CA goes into SENDER_APNS_CA_FILE" if error.verify_code != 62 else ""
        return f"the certificate of {where} is not trusted: {error.verify_message.rstrip('.')}{hint}"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if "ALERT_CERTIFICATE" in reason or "BAD_CERTIFICATE" in reason or "ALERT_UNKNOWN_CA" in reason:
            return f"{where} refused our certificate ({reason.lower().replace('_', ' ')})"
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"):
            return f"{where} does not speak TLS"
        return f"the TLS handshake with {where} failed: {reason.lower().replace('_', ' ')}"
    if isinstance(error, socket.gaierror):
        return f"there is no host {endpoint.proxy.host if endpoint.proxy else endpoint.host!r}: {error.strerror}"
    if isinstance(error, ConnectionRefusedError):
        return f"{endpoint.proxy.where if endpoint.proxy else where} refused the connection"
    if isinstance(error, ConnectionResetError):
        return f"{where} closed the connection in the handshake"
    if isinstance(error, ProxyError):
        return str(error)
    return f"{where}: {getattr(error, 'strerror', None) or error or type(error).__name__}"


def _lasts(error: BaseException) -> bool:
    return isinstance(error, ssl.SSLCertVerificationError) or (isinstance(error, ProxyError) and error.lasting)


def _keep_alive(sock: socket.socket | None) -> None:
    """Have the kernel notice a dead peer on an idle connection, which costs Apple's servers nothing."""
    if sock is None:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4), ("TCP_USER_TIMEOUT", 60_000)):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
