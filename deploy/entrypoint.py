"""Turns secrets that are files into settings, then becomes the command. The first process of every container.

`NAME_FILE=/run/secrets/x` gives `NAME` the file's content (its last line break left out), for files under /run/secrets;
SENDER_DATABASE_PASSWORD_FILE and SENDER_BROKER_PASSWORD_FILE are put into SENDER_DATABASE_URL and SENDER_BROKER_URL
where those have no password of their own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

SECRETS = "/run/secrets/"
#: Settings of their own, whose values are files.
FILES = {"SENDER_APNS_CA_FILE"}
#: Password -> the URL that it belongs into, and the user there when the URL names none.
PASSWORDS = {
    "SENDER_DATABASE_PASSWORD": ("SENDER_DATABASE_URL", "sender"),
    "SENDER_BROKER_PASSWORD": ("SENDER_BROKER_URL", ""),
}


def resolve(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with the secrets read. Raises `OSError` when a secret's file cannot be read."""
    resolved = dict(environment)
    for name, value in environment.items():
        if name.endswith("_FILE") and name not in FILES and value.startswith(SECRETS):
            resolved.pop(name)
            resolved.setdefault(name.removesuffix("_FILE"), Path(value).read_text().rstrip("\r\n"))
    for password, (url, user) in PASSWORDS.items():
        secret = resolved.pop(password, "")
        if secret and resolved.get(url):
            resolved[url] = with_password(resolved[url], user, secret)
    return resolved


def with_password(url: str, user: str, password: str) -> str:
    """The URL with the password in it, unless it has one already."""
    parts = urlsplit(url)
    if parts.password is not None:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or user}:{quote(password, safe='')}@{host}"))


def main() -> None:
    """Become the command that the arguments name."""
    try:
        environment = resolve(os.environ)
    except OSError as error:
        sys.exit(f"error: a secret cannot be read: {error}: it must be readable by user {os.getuid()}")
    os.execvpe(sys.argv[1], sys.argv[1:], environment)  # noqa: S606


if __name__ == "__main__":
    main()
