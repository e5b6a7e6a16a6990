"""The audits of `make check`: a planted secret is found, and an answer is told from no answer."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.audit import dependencies, secrets
from tests.audit.dependencies import Verdict, ask, judge, report
from tests.audit.secrets import findings

# --- secrets ----------------------------------------------------------------------------------------------------------


def private_key() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def provider_token() -> str:
    part = "eyJhbGciOiJFUzI1NiIsImtpZCI6IktFWTEyMzQ1NjcifQ"
    return f"{part}.{part}.{'c2lnbmF0dXJl' * 4}"


PLANTED = {
    "sender/module.py": lambda: f'KEY = """{private_key()}"""',
    "tests/test_module.py": private_key,
    "README.md": lambda: f"curl -H 'authorization: bearer {provider_token()}'",
    "docker-compose.yml": lambda: "SENDER_DATABASE_URL: postgresql://sender:" + "Wq7xR2pLz9" + "@db/sender",
    "config/settings.py": lambda: 'flower_password = "' + "Wq7xR2pLz9Tn" + '"',
    "deploy/run.sh": lambda: "export AWS_ACCESS_KEY_ID=" + "AKIA" + "Q3EGVJ6TZ7WLOPXM",
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_secret_is_found_and_not_shown(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"# a line before it\n{PLANTED[name]()}\n")
    assert [found[0] for found in findings([name], tmp_path)] == [name]
    monkeypatch.setattr(secrets, "findings", lambda files: findings(files, tmp_path))
    assert secrets.main([name]) == 1
    said = capsys.readouterr().err
    assert f"{name}:" in said and "Wq7xR2" not in said and "PRIVATE" not in said and "AKIA" not in said


@pytest.mark.parametrize("name", ["secrets/apns/AuthKey_ABCDE12345.p8", ".env", "x/servers.json", "push.p12"])
def test_a_file_that_holds_secrets_by_its_name_is_found(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"\x30\x82")
    assert findings([name], tmp_path) == [(name, 0, "a file of this name")]


def test_what_is_no_secret_passes_and_what_was_accepted_stays_accepted(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('password = os.environ["X"]\nurl = "redis://localhost:6379"\n')
    assert findings(["a.py"], tmp_path) == []
    found, _ = secrets.scan(["tests/integration/test_apps.py"])
    assert found.files and findings(["tests/integration/test_apps.py"]) == []


def test_what_was_accepted_is_still_there() -> None:
    assert all((secrets.ROOT / name).exists() for name in secrets.load())


# --- dependencies -----------------------------------------------------------------------------------------------------

SAFE = {"name": "safe", "version": "1", "vulns": []}
SKIPPED = {"name": "ours", "skip_reason": "Dependency not found on PyPI"}
BAD = {"name": "bad", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}]}


def said(*packages: Any) -> Verdict:
    return judge(json.dumps({"dependencies": packages, "fixes": []}), "")


def test_a_vulnerability_fails_the_check_and_says_what_mends_it() -> None:
    code, text = report([("pypi", said(SAFE, BAD, SKIPPED))])
    assert code == 1
    assert "bad 1: PYSEC-1, CVE-1; fixed in 2" in text


def test_that_nobody_could_be_asked_is_no_all_clear_and_does_not_fail() -> None:
    code, text = report([("pypi", said(SKIPPED, SKIPPED)), ("osv", judge("", "WARNING: x\nConnectionError: no"))])
    assert code == 0
    assert "NOT AUDITED" in text and "knows none of the 2 packages" in text and "ConnectionError: no" in text


def test_an_all_clear_names_what_it_is_not_for() -> None:
    assert report([("pypi", said(SAFE))]) == (0, "dependencies: no known vulnerabilities in 1 packages (pypi)")
    code, text = report([("pypi", said(SAFE, SKIPPED)), ("osv", judge("", ""))])
    assert code == 0 and text.endswith("NOT ASKED about 1: ours")


def test_what_one_service_found_counts_also_when_the_other_knows_more() -> None:
    assert report([("pypi", said(BAD)), ("osv", said(SAFE, SAFE))])[0] == 1


@pytest.mark.parametrize("output", ["", "null", "[]", "{}", '{"dependencies": null}', "Traceback"])
def test_an_output_that_is_none_is_no_answer(output: str) -> None:
    assert judge(output, "").failure and not judge(output, "").asked


class _Advisories(http.server.BaseHTTPRequestHandler):
    """An OSV that knows of one vulnerability, in one package."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = asked["package"]["name"]
        affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [], "versions": [asked["version"]]}
        known = {
            "id": "PYSEC-2027-1",
            "summary": "x",
            "details": "x",
            "affected": [affected],
            "aliases": ["CVE-2027-1"],
        }
        body = json.dumps({"vulns": [known]} if name == "iniconfig" else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def advisories() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()


def test_pip_audit_itself_is_understood(advisories: str) -> None:
    verdict = ask("osv", "--osv-url", advisories, "--cache-dir", "/nowhere")
    assert verdict.asked > 30, verdict
    assert [line.split(":")[0].split()[0] for line in verdict.vulnerabilities] == ["iniconfig"]


def test_a_service_that_is_away_is_no_answer() -> None:
    verdict = ask("osv", "--osv-url", "http://127.0.0.1:1/v1/query")
    assert verdict.failure and not verdict.asked and not verdict.vulnerabilities


def test_the_command_says_how_it_is_used() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.audit", "nonsense"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "tests.audit" in done.stderr
    assert set(dependencies.SERVICES) == {"pypi", "osv"}
