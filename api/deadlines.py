"""Connections that nobody can hold open: what a client owes the server comes in time, or the connection ends.

A request's head is a matter of seconds, a body must not crawl, and what the server has written must be taken. How long
the application itself takes is not counted. A connection without a request gives way to a new one when there are many.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import h11
from fastapi import Request
from starlette.types import Message, Receive
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.errors import problem_response
from api.uncopied import UncopiedBuffer, read_much


@dataclass(frozen=True)
class Patience:
    """How long a client is waited for, and how many are served.

    Attributes:
        head_seconds: For a request's head, from the connection or from its first byte; and for what is left of a body
            after its request was answered.
        stall_seconds: For a body to go on, and for the client to take what was written. Whoever sends and takes
            ``bytes_per_second`` is never cut off; a body that falls ``stall_seconds`` behind that is.
        bytes_per_second: Of a body.
        connections: At once. One more takes the place of the one that has been without a request for longest, and is
            asked to come back where all have one.
    """

    head_seconds: float = 10
    stall_seconds: float = 30
    bytes_per_second: int = 64 * 1024
    connections: int = 3000


USUAL_PATIENCE = Patience()


class PunctualBody:
    """A ``receive`` that says the client is gone when the body comes too slowly, so that nothing of it is kept.

    Attributes:
        is_late: Whether that is why: the client may still be there, and hear of it.
    """

    def __init__(self, receive: Receive, patience: Patience) -> None:
        self._receive, self._patience = receive, patience
        self._left = patience.stall_seconds
        self._is_whole = False
        self.is_late = False

    async def __call__(self) -> Message:
        """Wait for more of the body; once it is whole, for the client to go."""
        if self._is_whole:
            return await self._receive()
        began = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(self._left):
                message = await self._receive()
        except TimeoutError:
            self.is_late = True
            return {"type": "http.disconnect"}
        self._is_whole = not message.get("more_body", False)
        waited = asyncio.get_running_loop().time() - began
        earned = len(message.get("body", b"")) / self._patience.bytes_per_second
        self._left = min(self._patience.stall_seconds, self._left - waited + earned)
        return message


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it, stricter, and with deadlines for heads, unread bodies and untaken answers.

    ``idle`` is shared by all connections of a server: those without a request, the longest first.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        patience: Patience,
        idle: OrderedDict[PunctualProtocol, None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._patience, self._idle = patience, idle
        self.conn._receive_buffer = _StrictLines()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        read_much(transport)
        transport.set_write_buffer_limits(0)  # whatever the kernel does not take at once is waited for
        self._head = _Deadline(transport, self._patience.head_seconds)
        self._taking = _Deadline(transport, self._patience.stall_seconds)
        self._head.set()
        self._make_room()
        self._idle[self] = None

    def _make_room(self) -> None:
        if len(self.connections) > self._patience.connections and self._idle:
            longest, _ = self._idle.popitem(last=False)
            self.connections.discard(longest)  # at once, since many may come before the loop sees this one go
            longest.transport.abort()

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Take bytes; as long as no request is under way they are part of a head, or of a body that nobody wants."""
        super().data_received(data)
        if self._is_idle():
            self._head.set()
        else:
            self._head.lift()
            self._idle.pop(self, None)

    def on_response_complete(self) -> None:
        """Leave the wait for the next request to uvicorn."""
        super().on_response_complete()
        if self._is_idle():  # and has not taken up a request that came early
            self._idle[self] = None

    def pause_writing(self) -> None:
        """Expect the client to take what was written."""
        super().pause_writing()
        self._taking.set()

    def resume_writing(self) -> None:
        """It has."""
        super().resume_writing()
        self._taking.lift()

    def connection_lost(self, exc: Exception | None) -> None:
        """Expect nothing more."""
        super().connection_lost(exc)
        self._head.lift()
        self._taking.lift()
        self._idle.pop(self, None)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP in the form of every refusal; where the answer has begun, break off."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            scope = {"type": "http", "path": "", "headers": [], "state": {"request_id": f"req_{uuid.uuid4().hex}"}}
            answer = problem_response(Request(scope), 400, "malformed_request", msg, headers={"Connection": "close"})
            head = h11.Response(status_code=400, headers=answer.raw_headers, reason=b"Bad Request")
            for event in (head, h11.Data(data=bytes(answer.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class _StrictLines(UncopiedBuffer):
    """Lines of a head that end with CR LF. h11 takes LF alone too, where a proxy in front may see no end of a line."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        before = bytes(self)
        lines = super().maybe_extract_lines()
        taken = before[: len(before) - len(self)]
        if taken.count(b"\n") != taken.count(b"\r\n"):
            raise h11.LocalProtocolError("a line of the head ends without CR LF")
        return lines


class _Deadline:
    """Breaks a connection off, unless it is lifted in time. To set it again changes nothing."""

    def __init__(self, transport: asyncio.Transport, seconds: float) -> None:
        self._transport, self._seconds = transport, seconds
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._seconds, self._transport.abort)

    def lift(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
