"""The servers that stand in for APNs, each a process of its own with TLS on loopback: our simulator, and nginx."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sender.simulator import SimulatorProcess
from sender.simulator.certificates import ensure_certificates
from tests.bench.places import Place

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
NO_NGINX = "nginx is not installed (apt-get install nginx)"

#: As APNs has it.
_STREAMS = 1000

_CONFIGURATION = """
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 1024;
pid {folder}/nginx.pid; error_log {folder}/error.log crit;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl{http2_old};
    {http2_new}
    ssl_certificate {certificate}; ssl_certificate_key {certificate};
    keepalive_requests 100000000; keepalive_timeout 600s;
    http2_max_concurrent_streams {streams};
    location / {{ add_header apns-id $http_apns_id; return 200; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A running server."""

    name: str
    url: str
    pid: int


@contextmanager
def nginx(place: Place) -> Iterator[Server]:
    """nginx with one worker process: answers 200 to everything, faster than any client here but h2load sends."""
    assert NGINX is not None
    folder = place.directory / "nginx"
    folder.mkdir()
    files = ensure_certificates(place.certificates)
    version = subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", version)
    modern = found is not None and tuple(map(int, found.groups())) >= (1, 25, 1)
    port = _free_port()
    (folder / "nginx.conf").write_text(
        _CONFIGURATION.format(
            folder=folder, port=port, certificate=files.server_file, streams=_STREAMS,
            http2_old="" if modern else " http2", http2_new="http2 on;" if modern else "",
        )
    )  # fmt: skip
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process, folder)
        yield Server(name="nginx", url=f"https://127.0.0.1:{port}", pid=process.pid)
    finally:
        process.terminate()
        process.wait()


def simulator(place: Place, *, record: str) -> SimulatorProcess:
    """Our simulator, on the CA that all servers of the run have in common."""
    return SimulatorProcess("--record", record, "--directory", str(place.certificates))


def server_of(running: SimulatorProcess) -> Server:
    """A running simulator as a server."""
    return Server(name="simulator", url=running.url, pid=running.pid)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(f"nginx ended: {(folder / 'error.log').read_text()}") from None
            time.sleep(0.05)
    raise RuntimeError("nginx does not listen")
