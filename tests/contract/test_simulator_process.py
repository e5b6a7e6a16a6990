"""`sender simulate-apns` as users run it, and its control endpoint."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cryptography.hazmat.primitives import serialization

from sender.cli import main
from sender.errors import ConfigurationError, ConflictError, InvalidInputError
from sender.simulator import (
    Behaviour,
    OutageKind,
    Rule,
    Scenario,
    SettingsChange,
    Shares,
    Simulator,
    SimulatorConfig,
    SimulatorProcess,
    behaviour_of,
)
from sender.simulator.certificates import ensure_certificates
from tests.contract.raw_client import KEY, TOPIC, RawClient, provider_token, token

COMMAND = [sys.executable, "-c", "from sender.cli import main; main()", "simulate-apns"]


@pytest.fixture(scope="module")
def process() -> Iterator[SimulatorProcess]:
    with SimulatorProcess("--seed", "5", "--bad", "0.3", "--tries", "2", "--keep-payloads") as running:
        yield running


@pytest.fixture
def client(process: SimulatorProcess) -> Iterator[RawClient]:
    process.control.set_rules([])
    process.control.reset()
    with RawClient(process.url, process.ca_file) as connected:
        yield connected


def call(url: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, data=body, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def test_shares_on_the_command_line_are_those_of_the_pure_function(
    process: SimulatorProcess, client: RawClient
) -> None:
    shares = Shares(bad=0.3)
    expected = [400 if behaviour_of(token(number), shares, seed=5) is Behaviour.BAD else 200 for number in range(30)]
    assert [client.one(token(number)).status for number in range(30)] == expected
    assert 400 in expected


def test_both_environments_are_served(process: SimulatorProcess) -> None:
    with RawClient(process.sandbox_url, process.ca_file) as client:
        assert b"apns-unique-id" in client.one().headers


def test_a_remote_control_does_what_the_one_in_the_process_does(process: SimulatorProcess, client: RawClient) -> None:
    control = process.control
    control.set_rules([Rule(tokens=(token(1),), behaviour=Behaviour.UNREGISTERED, timestamp=5)])
    control.add_rules([Rule(tokens=(token(2),))])
    assert client.one(token(1)).json["timestamp"] == 5
    assert client.one(token(2), apns_expiration=b"77", apns_collapse_id=b"c").status == 200
    (seen,) = control.received(token(2))
    assert (seen.token, seen.status, seen.expiration, seen.collapse_id) == (token(2), 200, 77, "c")
    assert seen.payload is not None
    assert [one.token for one in control.received()] == [token(1), token(2)]
    assert control.accepted_counts() == {token(2): 1}
    assert control.expirations() == {None, 77}
    counters = control.counters()
    assert (counters.requests, counters.by_status) == (2, {410: 1, 200: 1})
    assert sum(counters.per_second.values()) == 2
    assert control.change_settings(SettingsChange(after_seconds=0, max_concurrent_streams=9)) >= 1
    client.settle()
    assert client.settings[-1] == {3: 9}
    assert control.send_raw(bytes.fromhex("000000990000000000")) >= 1
    assert control.goaway(debug="enough", close_after_ms=10) >= 1
    assert client.wait_closed()
    assert client.goaway is not None
    assert client.goaway.debug_data == b"enough"
    control.reset()
    assert control.counters().requests == 0
    assert list(control.received()) == []


def test_outages_and_drops_can_be_asked_for_from_outside(process: SimulatorProcess, client: RawClient) -> None:
    client.one()
    process.control.refuse(30, kind=OutageKind.TLS_ALERT)
    with pytest.raises(OSError, match=r"(?i)handshake.failure"):
        RawClient(process.url, process.ca_file)
    assert process.control.drop() >= 1
    assert client.wait_closed()
    process.control.set_scenario(Scenario())  # ends what is going on
    with RawClient(process.url, process.ca_file) as again:
        assert again.one().status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/nothing", None, 404, "no such thing"),
        ("/nothing", b"{}", 400, "no such thing"),
        ("/received?token=xyz", None, 400, "hex"),
        ("/rules", b"[{]", 400, "JSONDecodeError"),
        ("/rules", b'[{"behaviour": "rude"}]', 400, "rules.0"),
        ("/scenario", b'{"seed": "x", "latency": 3}', 400, "latency"),
        ("/refuse", b"", 400, "seconds"),
        ("/refuse?seconds=-1", b"", 400, "greater than 0"),
        ("/goaway", b'{"color": "red"}', 400, "color"),
        ("/raw", b'{"hex": "zz"}', 400, "hexadecimal"),
        ("/settings", b'{"max_frame_size": 3}', 400, "max_frame_size"),
    ],
)
def test_the_control_endpoint_says_what_is_wrong(
    process: SimulatorProcess, path: str, body: bytes | None, status: int, said: str
) -> None:
    got, answer = call(process.control_url + path, body)
    assert got == status
    assert said in json.dumps(answer)


def test_nonsense_on_the_control_port_does_no_harm(process: SimulatorProcess) -> None:
    host, port = process.control_url.removeprefix("http://").rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=5) as plain:
        plain.sendall(b"nonsense\r\n\r\n")
        assert plain.recv(10) == b""
    assert call(process.control_url + "/counters")[0] == 200


def test_a_wrong_rule_raises_at_the_remote_control(process: SimulatorProcess) -> None:
    with pytest.raises(InvalidInputError, match=r"greater than 0"):
        process.control.refuse(-1)


def test_a_key_and_a_topic_on_the_command_line_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "AuthKey_KEY1234567.p8"
    pem = KEY.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(pem)
    scenario = Scenario(shares=Shares(upper_case_id=1))
    arguments = ("--key", str(file), "--team-id", "TEAM123456", "--topic", TOPIC)
    with SimulatorProcess(*arguments, scenario=scenario) as process:
        with RawClient(process.url, process.ca_file) as client:
            answer = client.one(apns_id=b"8f0a1c2e-1111-4222-8333-44445555aaaa")
            assert answer.headers[b"apns-id"] == b"8F0A1C2E-1111-4222-8333-44445555AAAA"
            assert client.one(apns_topic=b"com.example.other").reason == "TopicDisallowed"
        with RawClient(process.url, process.ca_file) as client:
            assert client.one(authorization=provider_token(team="TEAM999999")).reason == "InvalidProviderToken"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--unregistered", "0.7", "--bad", "0.7"], "add up to 1.4"),
        (["--unregistered", "7"], "unregistered"),
        (["--key", "missing.p8", "--team-id", "TEAM123456"], "missing.p8"),
        (["--key", "missing.p8"], "--team-id"),
        (["--scenario", "missing.toml"], "missing.toml"),
        (["--record", "all"], "full, counts or none"),
        (["--client-ca", "missing.pem"], "missing.pem"),
    ],
)
def test_a_wrong_option_is_one_clear_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sender", "simulate-apns", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code not in {0, None}
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"port {port}"):
            SimulatorProcess("--port", str(port)).__enter__()
        with pytest.raises(ConflictError, match=f"port {port}"):
            Simulator(SimulatorConfig(control_port=port)).__enter__()


def test_one_that_a_process_started_for_itself_does_not_outlive_it(tmp_path: Path) -> None:
    code = (
        "import os\nfrom sender.simulator import SimulatorProcess\n"
        "print(SimulatorProcess('--port', '0').__enter__().pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    there = {**os.environ, "TMPDIR": str(tmp_path)}  # where its directory is left
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=there)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(timeout=20)


def test_it_stops_on_a_signal_and_its_ca_stays_for_the_next_time(tmp_path: Path) -> None:
    authorities = []
    for number in (signal.SIGTERM, signal.SIGINT):
        running = subprocess.Popen(COMMAND, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert running.stdout is not None
        told = dict(line.strip().partition(": ")[::2] for line in iter(running.stdout.readline, "ready\n"))
        assert Path(told["ca file"]) == (tmp_path / ".sender" / "simulator" / "ca.pem").resolve()
        authorities.append(Path(told["ca file"]).read_bytes())
        with RawClient(told["url"], Path(told["ca file"])) as client:
            assert client.one().status == 200
            running.send_signal(number)
            _, said = running.communicate(timeout=20)
        assert (running.returncode, said) == (0, "")
    assert authorities[0] == authorities[1]
    keys = (tmp_path / ".sender" / "simulator").glob("*-key.pem")
    assert [path.stat().st_mode & 0o777 for path in keys] == [0o600]


def test_a_directory_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="--directory"):
        ensure_certificates(tmp_path / "file")
