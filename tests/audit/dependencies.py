"""Known vulnerabilities of the installed packages, asked of PyPI and, where that does not know, of OSV, by pip-audit.

pip-audit itself says "No known vulnerabilities found" when nobody could be asked about a single package. Here those are
two answers: what was found fails the check; that nobody could be asked is said loudly, and does not (a build without
the internet must work).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Advisories that do not concern us: id -> why not, and until when to believe it.
IGNORED: dict[str, str] = {}

SERVICES = ("pypi", "osv")
_TIMEOUT = 240  # seconds for all packages together


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one service said."""

    asked: int = 0  # packages that it knows
    unknown: tuple[str, ...] = ()  # packages that it was not able to answer for
    vulnerabilities: tuple[str, ...] = ()  # a line each
    failure: str = ""  # why there is no answer at all


def judge(output: str, errors: str) -> Verdict:
    """What pip-audit's JSON, or the lack of it, means."""
    try:
        found: list[dict[str, Any]] = list(json.loads(output)["dependencies"])
    except (ValueError, KeyError, TypeError):
        lines = [line for line in errors.strip().splitlines() if not line.startswith("WARNING")]
        return Verdict(failure=lines[-1][:300] if lines else "pip-audit said nothing")
    known = [each for each in found if "vulns" in each and "skip_reason" not in each]
    return Verdict(
        asked=len(known),
        unknown=tuple(each["name"] for each in found if each not in known),
        vulnerabilities=tuple(_line(each, one) for each in known for one in each["vulns"]),
    )


def ask(service: str, *options: str) -> Verdict:
    """Run pip-audit on this environment."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--desc", "off", "--progress-spinner", "off"]
    command += ["--skip-editable", "--vulnerability-service", service]
    command += [part for each in IGNORED for part in ("--ignore-vuln", each)]
    try:
        done = subprocess.run(
            [*command, *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return Verdict(failure=f"no answer within {_TIMEOUT} s")
    return judge(done.stdout, done.stderr)


def report(verdicts: Sequence[tuple[str, Verdict]]) -> tuple[int, str]:
    """The exit code and what to say."""
    found = list(dict.fromkeys(line for _, verdict in verdicts for line in verdict.vulnerabilities))
    if found:
        advice = "Upgrade, or say in tests/audit/dependencies.py (IGNORED) why it does not concern us."
        return 1, "\n".join(
            [f"dependencies: {len(found)} known vulnerabilities", *(f"  {line}" for line in found), advice]
        )
    best = max(verdicts, key=lambda each: each[1].asked)
    if not best[1].asked:
        reasons = [
            f"  {service}: {verdict.failure or f'knows none of the {len(verdict.unknown)} packages'}"
            for service, verdict in verdicts
        ]
        return 0, "\n".join(
            [
                "*" * 100,
                "dependencies: NOT AUDITED: nobody could be asked for known vulnerabilities. That is no all-clear.",
                *reasons,
                "*" * 100,
            ]
        )
    service, verdict = best
    text = f"dependencies: no known vulnerabilities in {verdict.asked} packages ({service})"
    if verdict.unknown:
        text += f"; NOT ASKED about {len(verdict.unknown)}: {', '.join(verdict.unknown)}"
    return 0, text


def main() -> int:
    """Ask one service after the other until one knows every package. The exit code: 1 when something was found."""
    verdicts: list[tuple[str, Verdict]] = []
    for service in SERVICES:
        verdicts.append((service, ask(service)))
        if verdicts[-1][1].asked and not verdicts[-1][1].unknown:
            break
    code, text = report(verdicts)
    print(text, flush=True)
    return code


def _line(package: dict[str, Any], one: dict[str, Any]) -> str:
    names = ", ".join([one["id"], *one.get("aliases", [])[:1]])
    fixed = " or ".join(one.get("fix_versions") or []) or "no version yet"
    return f"{package['name']} {package['version']}: {names}; fixed in {fixed}"
