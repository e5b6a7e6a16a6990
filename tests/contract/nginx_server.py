"""nginx as an APNs: a server that this project did not write."""

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

from sender.simulator.certificates import ensure_certificates

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
MISSING = "nginx is not installed: apt-get install nginx (or brew install nginx) runs this suite"

#: Tokens that begin like this are unregistered, bad, an error without body; all others are accepted.
UNREGISTERED, BAD, EMPTY_ERROR = "dead", "bad0", "e0e0"

_CONFIGURATION = """
daemon off; master_process off; worker_processes 1; worker_rlimit_nofile 1024;
pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  log_format pushes '$uri $http_apns_id $status $http_apns_expiration $http_apns_topic $connection';
  access_log {folder}/access.log pushes;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl{http2_old};
    {http2_new}
    ssl_certificate {certificate}; ssl_certificate_key {certificate};
    keepalive_requests {requests};
    http2_max_concurrent_streams {streams};
    location /3/device/{unregistered} {{
      default_type application/json; return 410 '{{"reason":"Unregistered","timestamp":1700000000000}}'; }}
    location /3/device/{bad} {{ default_type application/json; return 400 '{{"reason":"BadDeviceToken"}}'; }}
    location /3/device/{empty} {{ return 444; }}
    location /3/device/ {{ add_header apns-id $http_apns_id; return 200; }}
    location / {{ default_type application/json; return 404 '{{"reason":"BadPath"}}'; }}
  }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nginx:
    """A running nginx."""

    url: str
    ca_file: Path
    folder: Path

    def requests(self) -> list[tuple[str, str, int, str, str, int]]:
        """What it answered: token, apns-id, status, apns-expiration, apns-topic, connection."""
        lines = (line.split() for line in (self.folder / "access.log").read_text().splitlines())
        return [
            (path.removeprefix("/3/device/"), apns_id, int(status), expiration, topic, int(connection))
            for path, apns_id, status, expiration, topic, connection in lines
        ]


@contextmanager
def run_nginx(folder: Path, *, keepalive_requests: int = 100_000, streams: int = 128) -> Iterator[Nginx]:
    """nginx in the foreground in `folder`, stopped at the end."""
    assert NGINX is not None
    files = ensure_certificates(folder / "ca")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    version = subprocess.run([NGINX, "-v"], capture_output=True, text=True, check=True).stderr
    found = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", version)
    modern = found is not None and tuple(map(int, found.groups())) >= (1, 25, 1)
    (folder / "nginx.conf").write_text(
        _CONFIGURATION.format(
            folder=folder, port=port, certificate=files.server_file, requests=keepalive_requests, streams=streams,
            http2_old="" if modern else " http2", http2_new="http2 on;" if modern else "",
            unregistered=UNREGISTERED, bad=BAD, empty=EMPTY_ERROR,
        )
    )  # fmt: skip
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process, folder)
        yield Nginx(url=f"https://127.0.0.1:{port}", ca_file=files.ca_file, folder=folder)
    finally:
        process.terminate()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes], folder: Path) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.05)
    raise AssertionError("nginx does not listen")
