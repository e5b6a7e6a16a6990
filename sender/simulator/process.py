"""A simulator in a process of its own: `with SimulatorProcess() as sim:`, for benchmarks and whole campaigns."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from sender.errors import ConflictError, InvalidInputError
from sender.model import Environment
from sender.simulator.behaviour import Rule
from sender.simulator.journal import Counters, Received
from sender.simulator.scenario import OutageKind, Scenario, SettingsChange

_TIMEOUT = 60.0  # seconds that one call may take
_STOP_TIMEOUT = 10.0


class RemoteControl:
    """The verbs of `Control`, through the control endpoint of another process."""

    def __init__(self, url: str) -> None:
        self.url = url

    def set_rules(self, rules: Iterable[Rule]) -> None:
        """Replace the rules."""
        self._post("/rules", [_json_of(rule) for rule in rules])

    def add_rules(self, rules: Iterable[Rule]) -> None:
        """Add to the rules; of several for a token the last one holds."""
        self._post("/rules?add=1", [_json_of(rule) for rule in rules])

    def set_scenario(self, scenario: Scenario) -> None:
        """Behave like this from now on."""
        self._post("/scenario", _json_of(scenario))

    def goaway(
        self, *, reason: str | None = None, debug: str | None = None, error_code: int = 0, close_after_ms: float = 1000
    ) -> int:
        """GOAWAY on every open connection now; returns to how many."""
        value = {"reason": reason, "debug": debug, "error_code": error_code, "close_after_ms": close_after_ms}
        return int(self._post("/goaway", value)["connections"])

    def change_settings(self, change: SettingsChange) -> int:
        """New SETTINGS on every open connection now; returns to how many."""
        return int(self._post("/settings", _json_of(change))["connections"])

    def send_raw(self, data: bytes) -> int:
        """Write these bytes, as they are, on every open connection; returns to how many."""
        return int(self._post("/raw", {"hex": data.hex()})["connections"])

    def drop(self) -> int:
        """Cut every open connection; returns how many."""
        return int(self._post("/drop")["connections"])

    def refuse(self, seconds: float, *, kind: OutageKind = OutageKind.REFUSE, drop: bool = False) -> None:
        """Let connecting fail for a while; `drop` cuts the open connections too."""
        self._post(f"/refuse?seconds={seconds}&kind={kind}" + ("&drop=1" if drop else ""))

    def reset(self) -> None:
        """Forget what was received, the counters, the tries of tokens and the provider tokens; rules stay."""
        self._post("/reset")

    def counters(self) -> Counters:
        """Figures since the start or the last reset."""
        value: dict[str, Any] = json.loads(self._call("GET", "/counters").read())
        for name in ("by_status", "per_second", "attempts_per_second"):
            value[name] = {int(key): count for key, count in value[name].items()}
        return Counters(**value)

    def received(self, token: str | None = None) -> Iterator[Received]:
        """What came in, in order: everything, or for one token, read as it is consumed."""
        with self._call("GET", "/received" + (f"?token={token}" if token else "")) as answer:
            for line in answer:
                value = json.loads(line)
                payload = value.pop("payload")
                yield Received(
                    **value | {"environment": Environment(value["environment"])},
                    payload=None if payload is None else payload.encode(),
                )

    def accepted_counts(self) -> dict[str, int]:
        """Token → how many notifications its device gets."""
        counts: dict[str, int] = json.loads(self._call("GET", "/accepted").read())
        return counts

    def expirations(self) -> set[int | None]:
        """Every distinct apns-expiration that came in; None: a request without one."""
        return set(json.loads(self._call("GET", "/expirations").read()))

    def _post(self, path: str, value: Any = None) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._call("POST", path, value).read())
        return answer

    def _call(self, method: str, path: str, value: Any = None) -> HTTPResponse:
        where = urlsplit(self.url)
        connection = HTTPConnection(where.hostname or "127.0.0.1", where.port, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body=None if value is None else json.dumps(value))
            answer = connection.getresponse()
        except OSError as error:
            raise ConflictError(f"the simulator's control endpoint {self.url} does not answer: {error}") from None
        if answer.status != 200:
            told = json.loads(answer.read())
            raise InvalidInputError(f"simulator: {told['error']}", told.get("faults", [f"status {answer.status}"]))
        return answer


class SimulatorProcess:
    """Runs `sender simulate-apns` with these arguments; has the urls, `ca_file` and `control` of `Simulator`."""

    def __init__(self, *arguments: str, scenario: Scenario | None = None) -> None:
        self._arguments: Sequence[str] = arguments
        self._scenario = scenario
        self.url = self.sandbox_url = self.control_url = ""
        self.ca_file = Path()

    def __enter__(self) -> SimulatorProcess:
        self._directory = tempfile.TemporaryDirectory(prefix="apns-simulator-")
        directory = Path(self._directory.name)
        command = [sys.executable, "-c", "from sender.cli import main; main()", "simulate-apns", "--until-stdin-ends"]
        command += self._arguments
        if "--directory" not in self._arguments:
            command += ["--directory", str(directory)]
        if self._scenario is not None:
            file = directory / "scenario.json"
            file.write_text(json.dumps(_json_of(self._scenario)))
            command += ["--scenario", str(file)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # which ends with us: it does not outlive whoever started it
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        told = self._read_lines()
        self.url, self.sandbox_url = told["url"], told["sandbox url"]
        self.control_url, self.ca_file = told["control"], Path(told["ca file"])
        self.control = RemoteControl(self.control_url)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.communicate(timeout=_STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._directory.cleanup()

    @property
    def pid(self) -> int:
        """Of the simulator's process."""
        return self._process.pid

    def _read_lines(self) -> dict[str, str]:
        told: dict[str, str] = {}
        for line in self._process.stdout or ():
            name, _, value = line.strip().partition(": ")
            if name == "ready":
                return told
            told[name] = value
        said = self._process.stderr.read().strip() if self._process.stderr else ""
        self.__exit__(None, None, None)
        raise ConflictError(f"the simulator did not start: {said.removeprefix('error: ')}")


def _json_of(value: BaseModel) -> Any:
    return value.model_dump(mode="json")
