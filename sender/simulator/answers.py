"""Sending what was decided: at once or later, as an answer, a reset, silence, or the end of the connection."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from uuid import uuid4

from ngh2 import Connection, NGH2Error

from sender.model import Environment
from sender.simulator import replies
from sender.simulator.replies import Act, IdForm, Reply

_OK = (b":status", b"200")
_JSON = (b"content-type", b"application/json; charset=utf-8")


class Answers:
    """The answers of one connection; those that are due later wait in one heap behind one timer."""

    def __init__(
        self, h2: Connection, environment: Environment, *, flush: Callable[[], None], abort: Callable[[], None]
    ) -> None:
        self._h2 = h2
        self._production = environment is Environment.PRODUCTION
        self._flush = flush
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._late: list[tuple[float, int, bytes, Reply]] = []
        self._timer: asyncio.TimerHandle | None = None

    def send(self, stream: int, apns_id: bytes, reply: Reply) -> None:
        """Put the reply on its stream; it goes out with the next flush."""
        act = reply.act
        try:
            if act is Act.ANSWER:
                self._respond(stream, apns_id, reply)
            elif act is Act.RESET:
                self._h2.reset_stream(stream, reply.code)
            elif act is Act.RESET_AFTER_HEADERS:
                self._h2.send_response(stream, [_OK, (b"apns-id", apns_id)])
                self._flush()  # else the reset would overtake the headers
                self._h2.reset_stream(stream, reply.code)
            elif act is Act.DROP:
                self._flush()
                self._abort()
        except NGH2Error:
            return  # the client has closed the stream meanwhile

    def send_later(self, delay: float, stream: int, apns_id: bytes, reply: Reply) -> None:
        """The same in `delay` seconds."""
        due = self._loop.time() + delay
        heapq.heappush(self._late, (due, stream, apns_id, reply))
        if self._timer is None or due < self._timer.when():
            self._wake_at(due)

    def forget(self) -> None:
        """The connection is gone: send nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._late.clear()

    def _respond(self, stream: int, apns_id: bytes, reply: Reply) -> None:
        if reply is replies.ACCEPTED and self._production:
            self._h2.send_response(stream, (_OK, (b"apns-id", apns_id)), end_stream=True)
            return
        headers = [(b":status", reply.status)]
        if reply.id_form is IdForm.AS_SENT:
            headers.append((b"apns-id", apns_id))
        elif reply.id_form is IdForm.UPPER_CASE:
            headers.append((b"apns-id", apns_id.upper()))
        if not self._production:
            headers.append((b"apns-unique-id", str(uuid4()).encode()))
        if reply.body:
            headers.append(_JSON)
            self._h2.send_response(stream, headers)
            self._h2.send_data(stream, reply.body, end_stream=True)
        else:
            self._h2.send_response(stream, headers, end_stream=True)

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._send_due)

    def _send_due(self) -> None:
        self._timer = None
        now = self._loop.time() + 0.0005  # answers half a millisecond apart go together
        while self._late and self._late[0][0] <= now:
            _, stream, apns_id, reply = heapq.heappop(self._late)
            self.send(stream, apns_id, reply)
        self._flush()
        if self._late:
            self._wake_at(self._late[0][0])
