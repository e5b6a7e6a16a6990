"""Who the embedded servers run as, and where their state and programs can live so that this user reaches them.

PostgreSQL refuses to run as root. When we are root the servers run as an existing unprivileged user. What that user
cannot reach (a checkout under /root, a virtual environment with umask 077) is not opened up: the state goes to a
directory of its own under /var/lib, and the programs are copied there.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sender.errors import ConfigurationError
from sender.stack.datadir import DataDirectory

UNPRIVILEGED = ("postgres", "nobody")  # the first of them that exists
ELSEWHERE = Path("/var/lib/apns-campaign-sender")
TEMPORARY = Path("/tmp")  # noqa: S108 - made with mkdtemp
LOCATIONS_FILE = "locations.json"  # in the data directory: where a server's state is, when it is not beside it
OWNER_FILE = "data-directory"  # in such a place: the data directory that it belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user to run a server as."""

    name: str
    uid: int
    gid: int

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `subprocess.Popen`."""
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """The files of a server: `root` has them, `parts` are what a copy must hold (those that exist), relative to it."""

    root: Path
    parts: tuple[str, ...]
    version: str

    def __truediv__(self, path: str) -> Path:
        return self.root / path


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where a server's state is, which programs to run, and as whom (None: as ourselves)."""

    state: Path
    programs: Programs
    account: Account | None


def find_home(data: DataDirectory, server: str, programs: Programs) -> Home:
    """Settle where a server lives. Raises `ConfigurationError` when no place can be found for it."""
    usual = data.path / server
    if os.geteuid() != 0:
        _own_or_refuse(usual)
        return Home(state=usual, programs=programs, account=None)
    recorded = data.read(LOCATIONS_FILE).get(server)
    state = Path(recorded) if recorded else usual
    account = _account(state)
    if recorded:
        _check_owner(state, data)
    elif not _own(usual, account) or not _reaches(account, [usual]):
        state = _move_elsewhere(data, server, account)
    return Home(state=state, programs=_readable(programs, state, data, account), account=account)


def forget_homes(data: DataDirectory) -> None:
    """Remove what servers of this data directory keep outside of it, for throw-away installations."""
    for place in data.read(LOCATIONS_FILE).values():
        shutil.rmtree(Path(place).parent, ignore_errors=True)
    data.remove(LOCATIONS_FILE)
    with contextlib.suppress(OSError):
        ELSEWHERE.rmdir()  # when it is empty


def _account(state: Path) -> Account:
    """The owner of what is already there, else an unprivileged user of this machine."""
    try:
        owner = state.stat().st_uid
    except FileNotFoundError:
        owner = 0
    candidates: Iterable[int | str] = (owner,) if owner else UNPRIVILEGED
    for candidate in candidates:
        try:
            entry = pwd.getpwuid(candidate) if isinstance(candidate, int) else pwd.getpwnam(candidate)
        except KeyError:
            continue
        return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise ConfigurationError(
        f"the embedded servers do not run as root and there is no user {' or '.join(map(str, candidates))} here: "
        "create one, run as an ordinary user, or set SENDER_DATABASE_URL and SENDER_BROKER_URL"
    )


def _own(folder: Path, account: Account) -> bool:
    """Make the folder, the account's alone; False when the file system does not let us (root on NFS)."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.stat().st_uid != account.uid:
            os.chown(folder, account.uid, account.gid)
    except PermissionError:
        return False
    return True


def _reaches(account: Account, paths: list[Path]) -> bool:
    """Ask the system rather than compute it: modes are not all (ACLs, security modules, network file systems)."""
    script = 'for path; do test -r "$path" && { test -f "$path" || test -x "$path"; } || exit 1; done'
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", script, "sh", *map(str, paths)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            **account.options(),
        )
    except (PermissionError, OSError) as error:
        raise ConfigurationError(
            f"cannot run the embedded servers as {account.name} ({error.strerror}): run as an ordinary user, or set "
            "SENDER_DATABASE_URL and SENDER_BROKER_URL"
        ) from None
    return done.returncode == 0


def _move_elsewhere(data: DataDirectory, server: str, account: Account) -> Path:
    """A place for the state outside of the data directory, recorded in it."""
    name = hashlib.sha256(str(data.path.resolve()).encode()).hexdigest()[:16]
    state = _place(data, name) / server
    place = state.parent
    (place / OWNER_FILE).write_text(str(data.path.resolve()))
    if not _own(state, account) or not _reaches(account, [state]):
        raise ConfigurationError(
            f"no directory found that {account.name} can use for the embedded {server} ({data.path} and {state} are "
            "closed to it): choose another one with --data-dir, run as an ordinary user, or use your own servers with "
            "SENDER_DATABASE_URL and SENDER_BROKER_URL"
        )
    unused = data.path / server
    if unused.is_dir() and not any(unused.iterdir()):
        unused.rmdir()
    data.write(LOCATIONS_FILE, {**data.read(LOCATIONS_FILE), server: str(state)})
    return state


def _place(data: DataDirectory, name: str) -> Path:
    """The directory for all servers of a data directory: one that is temporary gets a temporary one."""
    for recorded in data.read(LOCATIONS_FILE).values():
        return Path(recorded).parent
    if not data.path.is_relative_to(TEMPORARY):
        with contextlib.suppress(OSError):
            ELSEWHERE.mkdir(mode=0o711, exist_ok=True)
            (ELSEWHERE / name).mkdir(mode=0o711, exist_ok=True)
            return ELSEWHERE / name
    place = Path(tempfile.mkdtemp(prefix=f"sender-{name}-", dir=TEMPORARY))
    place.chmod(0o711)
    return place


def _check_owner(state: Path, data: DataDirectory) -> None:
    """Two copies of one data directory must not share the state outside of it; a moved one keeps it."""
    owner = state.parent / OWNER_FILE
    try:
        named = owner.read_text()
    except OSError:
        raise ConfigurationError(
            f"{data.path / LOCATIONS_FILE} says that the database is in {state}, but it is not: restore it, or remove "
            f"{data.path} to begin anew"
        ) from None
    if named == str(data.path.resolve()):
        return
    if Path(named).exists():
        raise ConfigurationError(
            f"{data.path} is a copy of {named}, whose database in {state} cannot be shared: remove {data.path} and "
            "begin anew, or use your own servers with SENDER_DATABASE_URL and SENDER_BROKER_URL"
        )
    owner.write_text(str(data.path.resolve()))


def _readable(programs: Programs, state: Path, data: DataDirectory, account: Account) -> Programs:
    """The programs, or a copy beside the state when the account cannot read them where they are."""
    present = [programs / part for part in programs.parts if (programs / part).exists()]
    if _reaches(account, present):
        return programs
    if state.parent == data.path:
        copies = data.path / "programs"
        copies.mkdir(mode=0o711, exist_ok=True)
    else:
        copies = state.parent
    copy = copies / programs.version
    if not copy.exists():
        draft = Path(tempfile.mkdtemp(prefix="programs-", dir=copies))
        for part in programs.parts:
            if (programs / part).exists():
                _copy(programs / part, draft / part)
        for path in [draft, *draft.rglob("*")]:
            executable = path.is_dir() or path.stat().st_mode & 0o100
            path.chmod(0o755 if executable else 0o644)
        draft.rename(copy)
    return Programs(root=copy, parts=programs.parts, version=programs.version)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _own_or_refuse(state: Path) -> None:
    state.mkdir(mode=0o700, exist_ok=True)
    if state.stat().st_uid != os.geteuid():
        raise ConfigurationError(
            f"{state} belongs to another user (it was made by root?): run as that user, or choose another directory "
            "with --data-dir or SENDER_DATA_DIR"
        )
