"""What tests of the API speak through, and how they read an error."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
from fastapi import FastAPI

from jobs.errors import QueueUnavailableError
from jobs.keys import new_key
from jobs.models import JobId

KEY = new_key()


@dataclass
class FakeQueue:
    """Remembers what was announced, or refuses as a broker that is down."""

    announced: list[JobId] = field(default_factory=list)
    is_down: bool = False

    def announce(self, job_id: JobId) -> None:
        if self.is_down:
            raise QueueUnavailableError("the broker took no message")
        self.announced.append(job_id)

    def waiting(self) -> int:
        return len(self.announced)


class InProcess(httpx.BaseTransport):
    """Speaks to an application without a server."""

    def __init__(self, app: FastAPI) -> None:
        self._app = httpx.ASGITransport(app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            answered = await self._app.handle_async_request(request)
            return httpx.Response(answered.status_code, headers=answered.headers, content=await answered.aread())

        request.read()
        return anyio.run(answer)


def client_of(app: FastAPI, headers: dict[str, str] | None = None) -> httpx.Client:
    return httpx.Client(transport=InProcess(app), base_url="http://medic", headers=headers)


def upload(client: httpx.Client, purpose: str, content: bytes, filename: str = "file.bin") -> dict[str, Any]:
    answer = client.put("/v1/files", params={"purpose": purpose, "filename": filename}, content=content)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


PROBLEM_FIELDS = {"type", "title", "status", "detail", "instance", "code", "request_id", "errors", "retryable"}


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Check that an answer is a whole problem document, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = dict(answer.json())
    assert document.keys() - {"retry_after"} == PROBLEM_FIELDS
    assert document["status"] == status
    assert document["request_id"] == answer.headers["x-request-id"]
    assert code is None or document["code"] == code
    return document
