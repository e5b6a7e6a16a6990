"""The main job as a user runs it: `sender up`, an import, campaigns from the command line and from Python."""

from __future__ import annotations

import base64
import csv
import json
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from sender import Alert, Payload, Segment
from sender.rehearsal import BUNDLE_ID, Rehearsal
from sender.settings import running_servers
from sender.simulator import Behaviour, Rule
from tests.acceptance.conftest import Cli

DEVICES = 100_000
HELLO = Payload(alert=Alert(title="Hello", body="World"))


def write_devices(path: Path, count: int, *, seed: int, registered_at: datetime, plan: str = "basic") -> list[str]:
    chance = random.Random(seed)
    tokens = [f"{chance.getrandbits(256):064x}" for _ in range(count)]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("token", "user", "environment", "registered_at", "active", "plan"))
        for number, token in enumerate(tokens):
            active = "false" if number % 100 == 99 else "true"
            writer.writerow((token, f"u{seed}-{number}", "production", registered_at.isoformat(), active, plan))
    return tokens


def milliseconds(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def reset(stack: Rehearsal) -> None:
    stack.simulator.control.reset()


@pytest.fixture(scope="module")
def imported(stack: Rehearsal, cli: Cli) -> list[str]:
    path = stack.directory / "hundred-thousand.csv"
    tokens = write_devices(path, DEVICES, seed=1, registered_at=datetime(2026, 1, 1, tzinfo=UTC), plan="mass")
    done = cli("devices", "import", str(path), "--app", BUNDLE_ID)
    assert done.returncode == 0, done.stderr
    return tokens


def test_every_active_device_of_a_hundred_thousand_is_accepted_exactly_once(
    stack: Rehearsal, cli: Cli, show: Callable[[str], dict[str, Any]], imported: list[str]
) -> None:
    reset(stack)
    done = cli(
        "campaigns", "send", "--app", BUNDLE_ID, "--title", "Hello", "--body", "World", "--key", "mass",
        "--where", "plan=mass", "--rate", "unlimited", "--yes", "--wait",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    accepted = stack.simulator.control.accepted_counts()
    active = {token for number, token in enumerate(imported) if number % 100 != 99}
    assert set(accepted) == active
    assert set(accepted.values()) == {1}
    report = show("mass")
    assert (report["state"], report["audience"], report["sent"]) == ("completed", len(active), len(active))
    (expiration,) = stack.simulator.control.expirations()
    started = datetime.fromisoformat(report["started_at"])
    assert expiration == int((started + timedelta(days=30)).timestamp())
    assert datetime.fromisoformat(report["expiration"]).timestamp() == expiration


def test_an_older_410_leaves_the_device_active_and_a_newer_one_makes_it_invalid(
    stack: Rehearsal, cli: Cli, show: Callable[[str], dict[str, Any]]
) -> None:
    registered = datetime(2026, 3, 1, tzinfo=UTC)
    path = stack.directory / "two.csv"
    older, newer = write_devices(path, 2, seed=2, registered_at=registered, plan="two")
    assert cli("devices", "import", str(path), "--app", BUNDLE_ID).returncode == 0
    stack.simulator.control.set_rules(
        [
            Rule(
                tokens=(older,),
                behaviour=Behaviour.UNREGISTERED,
                timestamp=milliseconds(registered - timedelta(days=1)),
            ),
            Rule(
                tokens=(newer,),
                behaviour=Behaviour.UNREGISTERED,
                timestamp=milliseconds(registered + timedelta(days=1)),
            ),
        ]
    )
    campaign = stack.sender.campaigns.enqueue(
        BUNDLE_ID, key="two", payload=HELLO, audience=Segment.where(plan="two"), rate=None
    )
    report = campaign.wait(timeout=60)
    stack.simulator.control.set_rules([])
    assert (report.rejected, report.by_reason) == (2, {"Unregistered": 2})
    states = {token: stack.sender.devices.show(token).state for token in (older, newer)}
    assert states == {older: "active", newer: "invalid"}
    kinds = {change.token: change.kind for change in stack.sender.changelog.read(campaign="two").changes}
    assert kinds == {older: "kept", newer: "invalidated"}
    # Importing is not registering: the same file again revives nothing.
    assert cli("devices", "import", str(path), "--app", BUNDLE_ID).returncode == 0
    assert stack.sender.devices.show(newer).state == "invalid"


def test_a_throttled_device_and_a_server_error_are_delivered_in_the_end(stack: Rehearsal, cli: Cli) -> None:
    path = stack.directory / "later.csv"
    tokens = write_devices(path, 50, seed=3, registered_at=datetime(2026, 3, 1, tzinfo=UTC), plan="later")
    assert cli("devices", "import", str(path), "--app", BUNDLE_ID).returncode == 0
    reset(stack)
    stack.simulator.control.set_rules(
        [
            Rule(tokens=(tokens[0],), behaviour=Behaviour.THROTTLED),
            Rule(tokens=(tokens[1],), behaviour=Behaviour.ERRORS),
            Rule(tokens=(tokens[2],), behaviour=Behaviour.REFUSED),
            Rule(tokens=(tokens[3],), behaviour=Behaviour.DROPPED_BEFORE),
        ]
    )
    campaign = stack.sender.campaigns.enqueue(
        BUNDLE_ID, key="later", payload=HELLO, audience=Segment.where(plan="later"), rate=None
    )
    report = campaign.wait(timeout=120)
    stack.simulator.control.set_rules([])
    assert (report.state, report.sent) == ("completed", 50)
    assert set(stack.simulator.control.accepted_counts()) == set(tokens)


def flower(stack: Rehearsal, path: str) -> Any:
    log = (stack.directory / "up.log").read_text()
    line = next(line for line in log.splitlines() if line.startswith("flower "))
    words = line.split()
    user, password = words[words.index("user") + 1], words[words.index("password") + 1]
    url = running_servers(stack.data_dir)["flower_url"]
    request = urllib.request.Request(f"{url}{path}")
    request.add_header("Authorization", "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode())
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def test_a_batch_size_of_one_is_one_task_per_device_and_flower_shows_each(stack: Rehearsal, cli: Cli) -> None:
    path = stack.directory / "singles.csv"
    write_devices(path, 150, seed=4, registered_at=datetime(2026, 3, 1, tzinfo=UTC), plan="single")
    assert cli("devices", "import", str(path), "--app", BUNDLE_ID).returncode == 0
    campaign = stack.sender.campaigns.enqueue(
        BUNDLE_ID, key="singles-2027", payload=HELLO, audience=Segment.where(plan="single"), rate=None, batch_size=1
    )
    report = campaign.wait(timeout=60)
    assert report.sent == 149  # one is inactive
    end = time.monotonic() + 30
    done: list[Any] = []
    while time.monotonic() < end and len(done) < 149:
        found = flower(stack, "/api/tasks?search=singles-2027&limit=1000").values()
        done = [task for task in found if task["name"] == "sender.send" and task["state"] == "SUCCESS"]
        time.sleep(0.2)
    assert len(done) == 149
    assert Counter(task["result"] for task in done) == {"{'sent': 1}": 149}
    assert all("singles-2027" in task["kwargs"] for task in done)
    names = {task["name"] for task in flower(stack, "/api/tasks?limit=10000").values()}
    assert names <= {"sender.send", "sender.fanout"}  # tick and sweep do not flood it


def test_flower_answers_nobody_without_the_password(stack: Rehearsal) -> None:
    url = running_servers(stack.data_dir)["flower_url"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{url}/api/tasks", timeout=30)
    assert refused.value.code == 401


def test_no_message_event_or_log_holds_a_whole_token_or_a_payload(stack: Rehearsal, imported: list[str]) -> None:
    tokens = set(imported)
    texts = [path.read_text(errors="replace") for path in (stack.data_dir / "logs").glob("*.log")]
    texts.append(json.dumps(flower(stack, "/api/tasks?limit=10000")))
    for text in texts:
        assert not any(word in tokens for word in _hex_words(text))
        assert "World" not in text


def _hex_words(text: str) -> list[str]:
    cleaned = "".join(letter if letter in "0123456789abcdef" else " " for letter in text)
    return [word for word in cleaned.split() if len(word) == 64]


def test_anybodys_beat_can_release_a_stored_draft_by_the_tasks_name(stack: Rehearsal) -> None:
    stack.sender.campaigns.create_draft(
        BUNDLE_ID, key="from-beat", payload=HELLO, audience=Segment.where(plan="two"), rate=None
    )
    broker = stack.sender.settings.require_broker_url()
    foreign = Celery("somebody", broker=broker)
    foreign.send_task("sender.enqueue_draft", kwargs={"key": "from-beat"}, queue="sender.control")
    end = time.monotonic() + 60
    while stack.sender.campaigns.show("from-beat").state == "draft" and time.monotonic() < end:
        time.sleep(0.05)
    report = stack.sender.campaigns.get("from-beat").wait(timeout=60)
    assert (report.state, report.pending) == ("completed", 0)


def test_a_foreign_application_on_the_same_redis_loses_no_message_and_eats_none(stack: Rehearsal) -> None:
    broker = stack.sender.settings.require_broker_url()
    foreign = Celery("somebody", broker=broker)
    for number in range(20):
        foreign.send_task("somebody.task", args=[number])
    campaign = stack.sender.campaigns.enqueue(
        BUNDLE_ID, key="shared", payload=HELLO, audience=Segment.where(plan="mass") & Segment.percentage(1), rate=None
    )
    report = campaign.wait(timeout=60)
    assert (report.state, report.pending) == ("completed", 0)
    seen = []
    with foreign.connection_for_read() as connection, connection.SimpleQueue("celery") as queue:
        for _ in range(20):
            message = queue.get(timeout=10)
            seen.append(message.payload[0][0])
            message.ack()
    assert sorted(seen) == list(range(20))


def test_a_small_audience_does_not_wait_behind_a_large_one(stack: Rehearsal, imported: list[str]) -> None:
    large = stack.sender.campaigns.enqueue(
        BUNDLE_ID, key="large", payload=HELLO, audience=Segment.where(plan="mass"), rate=500
    )
    while large.report().sent == 0:
        time.sleep(0.05)
    one = stack.sender.campaigns.enqueue(
        BUNDLE_ID, key="one", payload=HELLO, audience=Segment.users(f"u1-{len(imported) // 2}"), rate=None
    )
    assert one.wait(timeout=60).sent == 1
    assert large.report().pending > 0
    large.cancel()
    report = large.wait(timeout=60)
    assert report.state == "cancelled"
    assert report.sent + report.cancelled == report.audience
