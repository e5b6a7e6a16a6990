"""Whatever lands in the queues of real workers: nothing is executed, nothing is told, and the sending goes on."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
from pathlib import Path
from typing import Any

import pytest

from sender import Alert, Payload
from sender.rehearsal import BUNDLE_ID
from tests.chaos.stack import until
from tests.security.stage import Stage, write_devices

QUEUES = ("campaign", "priority", "control")
TOKEN = "5ec7e75ec7e7" * 5
EMPTY = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def envelope(
    body: bytes, *, task: Any = "sender.send", content_type: str = "application/json", **headers: Any
) -> dict[str, Any]:
    """A message as kombu's Redis transport has it in a list."""
    id = str(uuid.uuid4())
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": content_type,
        "headers": {"lang": "py", "task": task, "id": id, "root_id": id, "parent_id": None, "group": None} | headers,
        "properties": {
            "correlation_id": id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "sender.campaign"},
            "delivery_tag": id,
            "priority": 0,
            "body_encoding": "base64",
        },
    }


def call(task: Any, kwargs: Any, args: Any = (), **headers: Any) -> dict[str, Any]:
    return envelope(json.dumps([list(args), kwargs, EMPTY]).encode(), task=task, **headers)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def bombs(file: Path) -> list[dict[str, Any]]:
    pickled = pickle.dumps([[], {"batch": Bomb(file), "campaign": "x"}, EMPTY])
    yaml = f"!!python/object/apply:os.system ['touch {file}']".encode()
    return [
        envelope(pickled, content_type="application/x-python-serialize", argsrepr="()"),
        envelope(pickled, content_type="application/x-python-serialize") | {"content-encoding": "binary"},
        envelope(yaml, content_type="application/x-yaml"),
        envelope(pickled, content_type="application/data"),
        envelope(pickled, content_type="application/x-msgpack"),
        envelope(pickled, content_type="text/plain"),
        envelope(pickled),
        call("os.system", {}, [f"touch {file}"]),
        call("celery.map", {"task": {"task": "os.system"}, "it": [f"touch {file}"]}),
        call("celery.backend_cleanup", {}),
        call("sender.engine.delivery.send_batch", {"runtime": None, "batch_id": 1}),
        call("../../tasks", {}),
        call("", {}),
        call(None, {}),
        call({"a": 1}, {}),
        call("sender.tick", {}, shadow="x" * 10_000, retries="many", eta="never", expires="NaN", timelimit=["a", {}]),
    ]


IDS: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        2**31,
        2**63,
        10**30,
        -(10**30),
        1.5,
        1e308,
        [],
        [1, 2],
        {"a": 1},
        "1",
        "",
        "x",
        "\0",
        "\ud800",
    ),
    *("1; DROP TABLE sender.devices", "1' OR '1'='1", "%s", "{s}", "%(batch)s", TOKEN, "x" * 200_000),
]


def calls() -> list[dict[str, Any]]:
    made = [call("sender.send", {"batch": id, "campaign": id}) for id in IDS]
    made += [call("sender.fanout", {"id": id, "campaign": id}) for id in IDS]
    made += [call("sender.enqueue_draft", {"key": id}) for id in IDS]
    for task in ("sender.send", "sender.fanout", "sender.tick", "sender.sweep", "sender.enqueue_draft"):
        made += [call(task, {}, [1, 2]), call(task, {"self": 1, "__class__": "x", "batch": 1, "more": TOKEN})]
        made += [call(task, kwargs) for kwargs in ("text", 7, None, [1])]
        made += [envelope(body, task=task) for body in (b"", b"null", b"[]", b"{", b"\xff\xfe", b"[" * 5_000, b"7")]
    return made


def tables(stage: Stage) -> list[Any]:
    with stage.sender.devices._services.database.transaction() as transaction:
        return transaction.execute(
            "SELECT (SELECT count(*) FROM {s}.devices), (SELECT count(*) FROM {s}.campaigns), "
            "(SELECT count(*) FROM {s}.changelog)"
        ).fetchall()


def publish(stage: Stage, messages: list[dict[str, Any]]) -> None:
    """Into the queue of the campaign worker (which knows all tasks), and wait until it is empty."""
    queue = stage.settings.queue("campaign")
    for message in messages:
        stage.redis.lpush(queue, json.dumps(message))
    until(lambda: not stage.redis.llen(queue), "an empty queue", timeout=120)


def sends(stage: Stage, key: str) -> bool:
    """Whether a campaign still goes through all of the stack."""
    stage.sender.campaigns.enqueue(BUNDLE_ID, key=key, payload=Payload(alert=Alert(title="x")), rate=None)
    report = stage.sender.campaigns.wait(key, timeout=120)
    if report.finished_at is None:
        stage.sender.campaigns.cancel(key)
    return report.sent > 0


@pytest.fixture(scope="module")
def peopled(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    if not sum(stage.sender.devices.count(BUNDLE_ID).values()):
        file = tmp_path_factory.mktemp("devices") / "devices.csv"
        write_devices(file, 60)
        stage.sender.devices.import_file(file, app=BUNDLE_ID)
    return stage


def test_messages_with_code_in_them_are_refused_and_never_run(peopled: Stage, tmp_path: Path) -> None:
    file = tmp_path / "executed"
    before, processes = tables(peopled), peopled.processes()
    publish(peopled, bombs(file))
    assert sends(peopled, "after-the-bombs")
    assert not file.exists()
    assert peopled.processes() == processes
    assert tables(peopled)[0][0] == before[0][0]
    log = peopled.log("campaign-1")
    assert "os.system" in log and "message_refused" in log  # it is told that there was a task that nobody knows


def test_hostile_arguments_fail_by_themselves_and_change_nothing(peopled: Stage) -> None:
    before, processes = tables(peopled), peopled.processes()
    publish(peopled, calls())
    assert tables(peopled) == before
    assert sends(peopled, "after-the-calls")
    assert peopled.processes() == processes
    told = peopled.log("campaign-1")
    assert "sender.send" in told and "TaskFailedError" in told and TOKEN not in told


def test_what_is_no_message_at_all_costs_a_restart_at_most(peopled: Stage) -> None:
    for role, garbage in zip(QUEUES, (b"garbage", b"[]", b'{"body": 1}'), strict=True):
        peopled.redis.lpush(peopled.settings.queue(role), garbage)
    assert sends(peopled, "after-the-garbage")
