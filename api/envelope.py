"""Around every request: its id, checks of its head and its pace, an answer when the service itself fails."""

from __future__ import annotations

import logging
import re
import uuid
from itertools import chain

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.deadlines import Patience, PunctualBody
from api.errors import problem_response

log = logging.getLogger(__name__)

LONGEST_TARGET_BYTES = 8 * 1024
MOST_HEADERS = 100
MOST_HEADER_BYTES = 16 * 1024

_CLOSE = {"Connection": "close"}  # where the next request begins is not certain, or nobody should wait for it


class Envelope:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, patience: Patience) -> None:
        self._app, self._patience = app, patience
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and make sure of an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._running += 1
        try:
            await self._serve(scope, PunctualBody(receive, self._patience), send)
        finally:
            self._running -= 1

    async def _serve(self, scope: Scope, body: PunctualBody, send: Send) -> None:
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await (self._refusal(Request(scope)) or self._app)(scope, body, send_with_id)
        except ClientDisconnect:
            log.info("request %s: the client %s", request_id, "was too slow" if body.is_late else "went away")
            if body.is_late and not started:
                await self._too_slow(Request(scope))(scope, body, send_with_id)
        except Exception:
            log.exception("request %s failed", request_id)
            if started:
                raise  # the server breaks the connection, so that the client sees a truncated answer
            response = problem_response(Request(scope), 500, "internal", "the service failed; its log has the reason")
            await response(scope, body, send_with_id)

    def _refusal(self, request: Request) -> Response | None:
        if self._running > self._patience.connections:
            detail = f"{self._patience.connections} requests are being answered already"
            return problem_response(request, 503, "busy", detail, headers=_CLOSE)
        if "content-length" in request.headers and "transfer-encoding" in request.headers:
            detail = "Content-Length and Transfer-Encoding contradict each other: send one"
            return problem_response(request, 400, "ambiguous_length", detail, headers=_CLOSE)
        if len(request.scope.get("raw_path", b"")) + len(request.scope["query_string"]) > LONGEST_TARGET_BYTES:
            detail = f"path and query are longer than {LONGEST_TARGET_BYTES} bytes"
            return problem_response(request, 414, "target_too_long", detail, headers=_CLOSE)
        headers = request.headers.raw
        if len(headers) > MOST_HEADERS or sum(map(len, chain(*headers))) > MOST_HEADER_BYTES:
            detail = f"more than {MOST_HEADERS} header fields, or more than {MOST_HEADER_BYTES} bytes of them"
            return problem_response(request, 431, "headers_too_large", detail, headers=_CLOSE)
        return None

    def _too_slow(self, request: Request) -> Response:
        seconds, rate = self._patience.stall_seconds, self._patience.bytes_per_second
        detail = f"the body fell {seconds:g} seconds behind {rate} bytes a second; nothing was kept"
        return problem_response(request, 408, "too_slow", detail, headers=_CLOSE)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else f"req_{uuid.uuid4().hex}"
