"""Campaigns with every kind of answer at log level debug: who reads logs, events, the broker or the process list
learns no token, no key, no password, no text and no person."""

from __future__ import annotations

import base64
import re
import urllib.error
import urllib.request
from pathlib import Path

import psycopg
import pytest

from sender import Alert, Payload
from sender.rehearsal import BUNDLE_ID
from sender.settings import SERVERS_FILE, running_servers
from tests.security.stage import FLOWER_PASSWORD, Stage, write_devices

TITLE, BODY, DATA = "Canary title 4711", "Canary body 4712", "canary-data-4713"
DEVICES = 400


def test_nothing_of_a_campaign_can_be_read_beside_the_database(stage: Stage, tmp_path: Path) -> None:
    devices = write_devices(tmp_path / "devices.csv", DEVICES)
    assert stage.sender.devices.import_file(tmp_path / "devices.csv", app=BUNDLE_ID).lines == DEVICES
    assert sum(stage.sender.devices.count(BUNDLE_ID).values()) == DEVICES
    for kind in ("at_least_once", "at_most_once"):
        stage.sender.campaigns.enqueue(
            BUNDLE_ID,
            key=f"canary-{kind}",
            payload=Payload(alert=Alert(title=TITLE, body=BODY), data={"k": DATA}),
            delivery=kind,
            batch_size=50,
        )
        report = stage.sender.campaigns.wait(f"canary-{kind}", timeout=120)
        if report.finished_at is None:  # what the answers look like may hold it: a person goes on
            stage.sender.campaigns.cancel(f"canary-{kind}")
            stage.sender.campaigns.wait(f"canary-{kind}", timeout=120)
        assert report.sent > 0
    heard = stage.heard()
    heard["flower's metrics"] = flower(stage, "/metrics", password=None)[1].encode()  # Flower asks for no password here
    assert b"sender.send" in heard["flower's metrics"] and b"canary" not in heard["flower's metrics"]
    assert {"task-received", "task-succeeded"} <= stage.event_types()
    assert b"sender.send" in heard["broker commands"] and b"canary-at_least_once" in heard["broker commands"]
    assert any(b"batch_sent" in text for name, text in heard.items() if name.startswith("logs/campaign"))
    key = stage.rehearsal.key_file.read_text().splitlines()[1:-1]
    told = [*key, *stage.passwords(), TITLE, BODY, DATA, "person-", "secret-plan-", "PRIVATE KEY"]
    for source, text in heard.items():
        assert [each for each in told if each.encode() in text] == [], source
        assert tokens_in(text, {token[:12].encode() for token, _ in devices}) == set(), source
        assert re.search(rb"eyJ[\w-]{8,}\.eyJ", text) is None, f"a provider token in {source}"


def tokens_in(text: bytes, beginnings: set[bytes]) -> set[bytes]:
    """Which of these beginnings of 12 digits stand in the text."""
    runs = re.findall(rb"[0-9a-f]{12,}", text.lower())
    return {run[at : at + 12] for run in runs for at in range(len(run) - 11)} & beginnings


def test_an_error_of_a_statement_leaves_no_row_in_the_servers_log(stage: Stage) -> None:
    row = "INSERT INTO {s}.users (external_id) VALUES ('person-of-4715'), ('person-of-4715')"
    with pytest.raises(psycopg.errors.UniqueViolation), stage.sender.devices._services.database.transaction() as each:
        each.execute(row)
    log = stage.log("postgres")
    assert "duplicate key value violates unique constraint" in log and "person-of-4715" not in log


def test_the_search_would_find_what_it_looks_for(stage: Stage) -> None:
    stage.redis.lpush("somebodys-list", base64.b64encode(f'{{"title": "{TITLE}"}}'.encode()), "in the clear 4714")
    try:
        heard = stage.heard()
        assert TITLE.encode() in heard["broker keys"] and b"in the clear 4714" in heard["broker commands"]
    finally:
        stage.redis.delete("somebodys-list")


# --- Flower -----------------------------------------------------------------------------------------------------------


def flower(stage: Stage, path: str, *, password: str | None, method: str = "GET") -> tuple[int, str]:
    said = (stage.rehearsal.directory / "up.log").read_text().splitlines()
    url = next(line.split()[1] for line in said if line.startswith("flower    http"))
    request = urllib.request.Request(f"{url}{path}", method=method, data=b"{}" if method == "POST" else None)
    if password is not None:
        login = base64.b64encode(f"sender:{password}".encode()).decode()
        request.add_header("authorization", f"Basic {login}")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


PAGES = ("/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length")
BUTTONS = (
    "/api/worker/shutdown/campaign-1",
    "/api/worker/pool/restart/campaign-1",
    "/api/worker/queue/cancel-consumer/campaign-1?queue=sender.campaign",
    "/api/task/revoke/x?terminate=true",
    "/api/task/apply/sender.send",
    "/api/task/async-apply/sender.send",
    "/api/task/send-task/sender.send",
    "/api/task/rate-limit/sender.send?ratelimit=1",
)


def test_flower_shows_nothing_without_its_password(stage: Stage) -> None:
    for path in PAGES:
        for password in (None, "", "wrong", f"{FLOWER_PASSWORD}x"):
            assert flower(stage, path, password=password)[0] == 401, path


def test_flower_has_no_working_button_even_with_its_password(stage: Stage) -> None:
    before = stage.processes()
    for path in BUTTONS:
        assert flower(stage, path, password=None, method="POST")[0] in (401, 403, 404, 405), path
        assert flower(stage, path, password=FLOWER_PASSWORD, method="POST")[0] in (401, 403, 404, 405), path
    assert stage.processes() == before


@pytest.mark.parametrize("path", ["/tasks", "/api/tasks?limit=1000", "/broker"])
def test_flowers_pages_show_no_token_and_no_password(stage: Stage, path: str) -> None:
    status, page = flower(stage, path, password=FLOWER_PASSWORD)
    assert status == 200 and page
    with stage.sender.devices.export(BUNDLE_ID) as devices:
        assert not [device.token for device in devices if device.token[:12] in page]
    assert not [password for password in stage.passwords() if password in page]


# --- who else is on this machine --------------------------------------------------------------------------------------


def test_what_the_stack_writes_is_its_owners_alone(stage: Stage) -> None:
    secret = ["secrets.json", SERVERS_FILE, "processes.json", "lock"]
    assert all((stage.data_dir / name).stat().st_mode & 0o077 == 0 for name in secret)
    logs = [*(stage.data_dir / "logs").iterdir()]
    assert len(logs) >= 5 and all(log.stat().st_mode & 0o077 == 0 for log in logs)
    assert (stage.data_dir / "logs").stat().st_mode & 0o077 == 0
    assert stage.data_dir.stat().st_mode & 0o066 == 0  # as root others may pass through it, to their own directories
    assert stage.settings.database_url is not None and running_servers(stage.data_dir)
