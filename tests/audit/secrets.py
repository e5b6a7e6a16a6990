"""Secrets in the tree, found by detect-secrets (Bridgecrew's fork, which is kept up) and by what files are called.

`.secrets.baseline` lists what was looked at and is none, by hashes; a line may also say `pragma: allowlist secret`.
What is found is named by file, line and kind, and never shown.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from detect_secrets.core.potential_secret import PotentialSecret
from detect_secrets.core.secrets_collection import SecretsCollection
from detect_secrets.settings import default_settings

ROOT = Path(__file__).parents[2]
BASELINE = ROOT / ".secrets.baseline"
#: Files that hold secrets by what they are called: keys and certificates of APNs, what `sender up` and Compose make.
NAMES = ("*.p8", "*.p12", "*.pfx", "*.key", "secrets.json", "servers.json", ".env", "*.rejects.csv")
#: Made-up passwords and tokens are what tests are made of: these kinds are looked for elsewhere only.
NOT_IN_TESTS = {"Secret Keyword", "Basic Auth Credentials", "Base64 High Entropy String", "Hex High Entropy String"}

Finding = tuple[str, int, str]  # file, line (0: the file itself), kind


def tree() -> list[str]:
    """The files of the repository, new ones that are not ignored included; none where this is no repository."""
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return [name for name in done.stdout.split("\0") if name not in ("", BASELINE.name) and (ROOT / name).is_file()]


def scan(files: Iterable[str], root: Path = ROOT) -> tuple[SecretsCollection, list[Finding]]:
    """What detect-secrets finds in the files, and those whose names say it."""
    found = SecretsCollection(root=str(root))
    by_name: list[Finding] = []
    for name in files:
        if any(fnmatch(Path(name).name, pattern) for pattern in NAMES):
            by_name.append((name, 0, "a file of this name"))
        with default_settings():
            found.scan_file(name)
        if name.startswith("tests/") and name in found.files:
            found[name] = {each for each in found[name] if each.type not in NOT_IN_TESTS}
    return found, by_name


def findings(files: Iterable[str], root: Path = ROOT) -> list[Finding]:
    """What is found and not accepted."""
    known = {(name, each) for name, accepted in load().items() for each in accepted}
    found, by_name = scan(files, root)
    new = [(name, each.line_number, each.type) for name, each in found if (name, _mark(each)) not in known]
    return by_name + sorted(new)


def load() -> dict[str, list[str]]:
    """What was accepted: file -> kinds and hashes."""
    read: dict[str, list[str]] = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    return read


def accept(files: Iterable[str]) -> None:
    """Write the baseline anew: everything that is found now is no secret."""
    found, _ = scan(files)
    marks: dict[str, set[str]] = {}
    for name, each in found:
        marks.setdefault(name, set()).add(_mark(each))
    BASELINE.write_text(json.dumps({name: sorted(marks[name]) for name in sorted(marks)}, indent=1) + "\n")


def main(words: list[str]) -> int:
    """The exit code: 1 when something was found."""
    if words == ["--accept"]:
        accept(tree())
        print(f"wrote {BASELINE.name}: look at its difference before you commit it")
        return 0
    files = words or tree()
    if not files:
        print("secrets: NOT SCANNED: this is no git repository, so that nobody knows which files belong to it")
        return 0
    found = findings(files)
    for name, line, kind in found:
        print(f"{name}:{line}: {kind}", file=sys.stderr)
    if found:
        print(
            "Take it out, and have it replaced where it was valid; when it is none, write `pragma: allowlist secret` "
            "in its line, or `python -m tests.audit secrets --accept`.",
            file=sys.stderr,
        )
        return 1
    print(f"secrets: none in {len(files)} files")
    return 0


def _mark(secret: PotentialSecret) -> str:
    """Knows a secret again without telling it; not by its line, which moves."""
    return f"{secret.type}: {secret.secret_hash}"
