"""Around every request: its id and its line in the log, a check of its length, an answer when the service fails."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem_response
from jobs import logs

log = logging.getLogger(__name__)


class Envelope:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and make sure of an answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        with logs.about(request_id=request_id), _logged(scope) as answered:

            async def send_with_id(message: Message) -> None:
                if message["type"] == "http.response.start":
                    answered["status"] = message["status"]
                    MutableHeaders(scope=message)["X-Request-Id"] = request_id
                await send(message)

            await self._answer_in_any_case(scope, receive, send_with_id, answered)

    async def _answer_in_any_case(
        self, scope: Scope, receive: Receive, send: Send, answered: Mapping[str, int]
    ) -> None:
        try:
            await self._answer(scope, receive, send)
        except ClientDisconnect:
            log.info("the client went away")
        except Exception:
            log.exception("the request failed")
            if answered:
                raise  # the server breaks the connection, so that the client sees a truncated answer
            response = problem_response(Request(scope), 500, "internal", "the service failed; its log has the reason")
            await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            detail = "Content-Length and Transfer-Encoding contradict each other: send one"
            close = {"Connection": "close"}  # where the next request begins is not certain
            response = problem_response(Request(scope), 400, "ambiguous_length", detail, headers=close)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


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
