"""The control endpoint: a small HTTP/1.1 server that speaks JSON, for processes that cannot call `Control` directly.

GET  /counters                          figures, with a per-second histogram by the simulator's own clock
GET  /received[?token=HEX]              JSON lines, one a request
GET  /accepted                          {token: how many notifications its device gets}
GET  /expirations                       the distinct apns-expiration values
POST /rules[?add=1]                     a list of rules
POST /scenario                          a scenario
POST /settings                          SETTINGS for every open connection
POST /goaway, /drop, /reset
POST /refuse?seconds=N[&kind=K][&drop=1]
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from pydantic import ValidationError

from sender.errors import InvalidInputError, SenderError
from sender.simulator.control import Control
from sender.simulator.journal import Received
from sender.simulator.scenario import OutageKind, SettingsChange, faults_of, parse_rules, parse_scenario

_REQUEST_LIMIT = 256 << 20  # bytes of a body: rules for a million tokens
_LINES_AT_ONCE = 500


class ControlServer:
    """Serves one `Control`, on the simulator's event loop."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listen; loopback is what it is meant for."""
        self._server = await asyncio.start_server(self._serve, host, port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut who is connected."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, ValueError):
            await self._one_request(reader, writer)
        with contextlib.suppress(ConnectionError):
            writer.close()
            await writer.wait_closed()

    async def _one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, target, _ = (await reader.readline()).decode("latin-1").split(" ", 2)
        length = 0
        while (line := (await reader.readline()).strip()) != b"":
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        body = await reader.readexactly(min(length, _REQUEST_LIMIT))
        url = urlsplit(target)
        query = dict(parse_qsl(url.query))
        answer: Any
        if (method, url.path) == ("GET", "/received"):
            token = query.get("token")
            if token is None:
                await self._stream(writer, self._control.received())
                return
            if _is_hex(token):  # few rows, but a long look: not on the event loop
                found = await asyncio.to_thread(lambda: list(self._control.received(token)))
                await self._stream(writer, iter(found))
                return
            status, answer = b"400 Bad Request", {"error": "token must be hex"}
        elif (method, url.path) == ("GET", "/accepted"):
            status, answer = b"200 OK", await asyncio.to_thread(self._control.accepted_counts)
        else:
            status, answer = self._answer(method, url.path, query, body)
        text = json.dumps(answer).encode()
        writer.write(
            b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (status, len(text), text)
        )
        await writer.drain()

    def _answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[bytes, Any]:
        try:
            match method, path:
                case "GET", "/counters":
                    answer: Any = dataclasses.asdict(self._control.counters())
                case "GET", "/expirations":
                    answer = list(self._control.expirations())
                case "POST", _:
                    answer = self._change(path, query, json.loads(body) if body.strip() else {})
                case _:
                    return b"404 Not Found", {"error": f"no such thing: {method} {path}"}
        except InvalidInputError as error:
            return b"400 Bad Request", {"error": error.what, "faults": error.faults}
        except ValidationError as error:
            return b"400 Bad Request", {"error": path, "faults": faults_of(error)}
        except (ValueError, TypeError, KeyError, SenderError) as error:
            return b"400 Bad Request", {"error": f"{type(error).__name__}: {error}"}
        return b"200 OK", answer

    def _change(self, path: str, query: dict[str, str], value: Any) -> dict[str, Any]:
        match path:
            case "/rules":
                rules = parse_rules(value)
                (self._control.add_rules if query.get("add") else self._control.set_rules)(rules)
                return {"rules": len(rules)}
            case "/scenario":
                self._control.set_scenario(parse_scenario(value))
            case "/settings":
                change = SettingsChange.model_validate({"after_seconds": 0} | value)
                return {"connections": self._control.change_settings(change)}
            case "/goaway":
                return {"connections": self._control.goaway(**value)}
            case "/raw":
                return {"connections": self._control.send_raw(bytes.fromhex(value["hex"]))}
            case "/drop":
                return {"connections": self._control.drop()}
            case "/reset":
                self._control.reset()
            case "/refuse":
                kind = OutageKind(query.get("kind", OutageKind.REFUSE))
                self._control.refuse(float(query["seconds"]), kind=kind, drop=bool(query.get("drop")))
            case _:
                raise ValueError(f"no such thing: POST {path}")
        return {}

    async def _stream(self, writer: asyncio.StreamWriter, rows: Iterator[Received]) -> None:
        """JSON lines to the end of the connection; lets the event loop go on with pushes in between."""
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/jsonl\r\nConnection: close\r\n\r\n")
        lines: list[str] = []
        for row in rows:
            value = dataclasses.asdict(row)
            value["payload"] = row.payload.decode("utf-8", "replace") if row.payload is not None else None
            lines.append(json.dumps(value) + "\n")
            if len(lines) >= _LINES_AT_ONCE:
                writer.write("".join(lines).encode())
                lines.clear()
                await writer.drain()
                await asyncio.sleep(0)
        writer.write("".join(lines).encode())
        await writer.drain()


def _is_hex(text: str) -> bool:
    try:
        bytes.fromhex(text)
    except ValueError:
        return False
    return True
