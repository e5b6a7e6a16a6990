"""What we read of our own: settings from the environment, the files in the data directory, the simulator's control."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from sender.errors import SenderError
from sender.settings import Settings, load_settings, running_servers, unknown_variables
from sender.simulator import Scenario, Simulator, SimulatorConfig
from sender.stack.children import find_leftovers
from sender.stack.datadir import DataDirectory
from tests.fuzz.profile import AWKWARD, awkward, fuzz, json_values, texts

# --- settings ---------------------------------------------------------------------------------------------------------

NAMES = list(Settings.model_fields)
values = texts.filter(lambda text: "\0" not in text)  # an environment holds none


@fuzz(60)
@given(st.dictionaries(st.sampled_from(NAMES), values, min_size=1, max_size=4))
def test_settings_are_right_or_name_what_is_wrong(tmp_path: Path, given: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for name, value in given.items():
            patch.setenv(f"SENDER_{name.upper()}", value)
        try:
            settings = load_settings()
        except SenderError as error:
            assert any(f"SENDER_{name.upper()}" in str(error) for name in given)
            for name, value in given.items():
                if name in ("database_url", "broker_url", "flower_password", "apns_proxy_url") and len(value) > 12:
                    assert value not in str(error)
            return
        assert "Settings(" in repr(settings)
        unknown_variables()


def test_awkward_texts_in_every_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        for text in AWKWARD[number % 11 :: 11]:
            if "\0" in text:
                continue
            monkeypatch.setenv(f"SENDER_{name.upper()}", text)
            try:
                load_settings()
            except SenderError as error:
                assert f"SENDER_{name.upper()}" in str(error) or name == "data_dir"
        monkeypatch.delenv(f"SENDER_{name.upper()}")


@fuzz(100)
@given(
    texts, st.sampled_from(["postgresql://", "redis://", "rediss://", "http://", "postgresql+psycopg://", "x://", ""])
)
def test_urls_of_any_text_fail_when_used_in_a_word_of_ours(rest: str, scheme: str) -> None:
    from sender.nudge import nudge
    from sender.store.database import Database

    if any(mark in rest for mark in ("/", "@", "{", "$")) or len(rest) > 500:
        rest = rest[:20].replace("@", "")
    assert nudge(Settings(broker_url=SecretStr(f"{scheme}{rest}@127.0.0.1:1"))) is False
    try:
        database = Database(f"{scheme}user:hunter2{rest}@127.0.0.1:1/x", schema="s", timeout=0.05)
        with database.transaction():
            pass
    except SenderError as error:
        assert "hunter2" not in str(error)


# --- the data directory -----------------------------------------------------------------------------------------------

contents = st.one_of(
    json_values.map(json.dumps),
    st.fixed_dictionaries(
        {},
        optional={"pid": json_values, "database_url": json_values, "broker_url": json_values, "processes": json_values},
    ).map(json.dumps),
    st.lists(st.dictionaries(st.sampled_from(["name", "pid", "created"]), json_values)).map(
        lambda each: json.dumps({"processes": each})
    ),
    awkward,
)


@fuzz(60)
@given(contents)
def test_files_of_the_data_directory_of_any_content_are_read_or_refused(tmp_path: Path, content: str) -> None:
    for name in ("servers.json", "processes.json", "secrets.json"):
        (tmp_path / name).write_text(content, encoding="utf-8", errors="surrogatepass")
    found = running_servers(tmp_path)
    assert isinstance(found, dict)
    try:
        load_settings(data_dir=tmp_path)
        find_leftovers(DataDirectory(tmp_path))
        DataDirectory(tmp_path).secret("postgres")
    except SenderError as error:
        assert str(tmp_path) in str(error) or "SENDER_" in str(error)


# --- the simulator's control endpoint ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Simulator]:
    config = SimulatorConfig(
        directory=tmp_path_factory.mktemp("simulator"), scenario=Scenario(), record="full", accept_any_key=True
    )
    with Simulator(config) as simulator:
        yield simulator


PATHS = ("/rules", "/scenario", "/settings", "/goaway", "/drop", "/reset", "/refuse", "/raw", "/counters", "/x")


def post(simulator: Simulator, path: str, body: bytes) -> int:
    request = urllib.request.Request(f"{simulator.control_url}{path}", data=body, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            json.loads(answer.read())
            return answer.status
    except urllib.error.HTTPError as error:
        assert json.loads(error.read())["error"]
        return error.code


@fuzz(120)
@given(
    st.sampled_from(PATHS),
    st.one_of(json_values.map(lambda value: json.dumps(value).encode()), st.binary(max_size=50)),
)
def test_the_control_endpoint_answers_any_body(simulator: Simulator, path: str, body: bytes) -> None:
    assert post(simulator, path, body) in (200, 400, 404)


def test_the_control_endpoint_outlives_what_is_no_http(simulator: Simulator) -> None:
    port = int(simulator.control_url.rsplit(":", 1)[1])
    for data in (
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"\0" * 100,
        b"POST /rules HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"POST /rules HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a" * 200_000,
        b"GET http://[ HTTP/1.1\r\n\r\n",
        b"GET /received?token=%ff HTTP/1.1\r\n\r\n",
        b"POST /refuse?seconds=nan HTTP/1.1\r\n\r\n",
        b"POST /refuse?seconds=x&kind=y HTTP/1.1\r\n\r\n",
    ):
        with (
            socket.create_connection(("127.0.0.1", port), timeout=60) as client,
            suppress(OSError),  # it may hang up at any moment
        ):
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    assert post(simulator, "/reset", b"") == 200
