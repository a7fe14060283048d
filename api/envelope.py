"""Around every request: its id, its line in the log, checks of its head and pace, an answer when the service fails."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.deadlines import Patience, PunctualBody
from api.errors import problem_response
from jobs import logs

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
        with logs.about(request_id=request_id), _logged(scope) as answered:

            async def send_with_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answered["status"] = message["status"]
                    MutableHeaders(scope=message)["X-Request-Id"] = request_id
                await send(message)

            await self._answer_in_any_case(scope, body, send_with_id, answered)

    async def _answer_in_any_case(
        self, scope: Scope, body: PunctualBody, send: Send, answered: Mapping[str, int]
    ) -> None:
        try:
            await (self._refusal(Request(scope)) or self._app)(scope, body, send)
        except ClientDisconnect:
            log.info("the client %s", "was too slow" if body.is_late else "went away")
            if body.is_late and not answered:
                await self._too_slow(Request(scope))(scope, body, send)
        except Exception:
            log.exception("the request failed")
            if answered:
                raise  # the server breaks the connection, so that the client sees a truncated answer
            response = problem_response(Request(scope), 500, "internal", "the service failed; its log has the reason")
            await response(scope, body, send)

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


@contextmanager
def _logged(scope: Scope) -> Iterator[dict[str, int]]:
    """Log one line about a request when it is over. ``status`` is put into what is yielded; nobody saw one without it.

    The path is logged as it came, so that all requests about one job can be found; the query is not.
    """
    began, answered = time.monotonic(), dict[str, int]()
    try:
        yield answered
    finally:
        seconds = round(time.monotonic() - began, 3)
        with logs.about(method=scope["method"], path=scope["path"], status=answered.get("status"), seconds=seconds):
            log.info("request over")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given) else f"req_{uuid.uuid4().hex}"
