"""Where a run of the benchmark keeps its files, and what is there to measure with."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sender.model import CredentialKind, CredentialRef, Environment
from sender.stack.account import forget_homes
from sender.stack.datadir import DataDirectory

TOPIC = "com.example.bench"
TEAM_ID, KEY_ID = "BENCHTEAM1", "BENCHKEY01"

NODE_APN = "@parse/node-apn@8"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A temporary directory with a signing key in it."""

    directory: Path
    key_file: Path

    @property
    def certificates(self) -> Path:
        """Where the throw-away CA of all servers is."""
        return self.directory / "ca"

    @property
    def ca_file(self) -> Path:
        """The CA that all servers of the run have in common."""
        return self.certificates / "ca.pem"

    @property
    def data_dir(self) -> Path:
        """The stack's data directory."""
        return self.directory / "data"

    @property
    def credential(self) -> CredentialRef:
        """The signing key as a worker knows it."""
        return CredentialRef(
            kind=CredentialKind.KEY,
            environment=Environment.PRODUCTION,
            file=str(self.key_file),
            team_id=TEAM_ID,
            key_id=KEY_ID,
        )


@contextmanager
def a_place() -> Iterator[Place]:
    """A temporary directory, gone afterwards with what the embedded servers keep outside of it."""
    directory = Path(tempfile.mkdtemp(prefix="sender-bench-"))
    place = Place(directory=directory, key_file=directory / f"AuthKey_{KEY_ID}.p8")
    try:
        key = ec.generate_private_key(ec.SECP256R1())
        place.key_file.touch(mode=0o600)
        place.key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        yield place
    finally:
        forget_homes(DataDirectory(place.data_dir))
        shutil.rmtree(directory, ignore_errors=True)


def node_modules() -> tuple[Path | None, str]:
    """Where node-apn is, installed with npm into a cache directory at first use; or None, and why not."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None, "node and npm are not installed"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apns-campaign-sender" / "bench-node"
    modules = cache / "node_modules"
    if (modules / "@parse" / "node-apn").is_dir():
        return modules, ""
    cache.mkdir(parents=True, exist_ok=True)
    command = [npm, "install", "--no-fund", "--no-audit", "--ignore-scripts", "--prefix", str(cache), NODE_APN]
    done = subprocess.run(command, cwd=cache, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        return None, f"npm could not install {NODE_APN}: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
    return modules, ""
