"""What a job has made: the list, and each by its name."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from api.dependencies import Artifacts, Jobs, allowed
from api.openapi import problems
from api.ranges import byte_range, matches
from jobs.errors import JobNotFinishedError
from jobs.models import Artifact

router = APIRouter(prefix="/jobs/{job_id}/artifacts", tags=["artifacts"], dependencies=[allowed("jobs:read")])

CHUNK_BYTES = 256 * 1024

_BYTES: dict[str, Any] = {"content": {"application/octet-stream": {}}}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The bytes", **_BYTES},
    206: {"description": "The range asked for", **_BYTES},
    304: {"description": "Not Modified"},
    **problems(404, 409, 410, 416),
}


@router.get("", summary="List a job's artifacts", operation_id="list_artifacts", responses=problems(404, 409, 410))
def list_artifacts(job_id: str, jobs: Jobs) -> tuple[Artifact, ...]:
    """Empty when the job failed or was cancelled."""
    _require_finished(job_id, jobs)
    return jobs.artifacts(job_id)


@router.head(
    "/{name}",
    summary="Ask about an artifact",
    operation_id="head_artifact",
    response_class=Response,
    responses=_ANSWERS,
)
@router.get(
    "/{name}",
    summary="Download an artifact",
    operation_id="get_artifact",
    response_class=Response,
    responses=_ANSWERS,
)
def get_artifact(
    job_id: str,
    name: str,
    request: Request,
    jobs: Jobs,
    artifacts: Artifacts,
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    """One range at a time; a request for several is answered with everything."""
    _require_finished(job_id, jobs)
    artifact = jobs.artifact(job_id, name)
    headers = _headers(artifact)
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    path = artifacts.path(artifact.sha256)
    if request.method == "HEAD":
        length = {"Content-Length": str(artifact.bytes)}
        return Response(headers={**headers, **length}, media_type=artifact.media_type)
    wanted = byte_range(range_, artifact.bytes) if if_range in (None, headers["ETag"]) else None
    return _send(path, artifact, wanted, headers)


def _require_finished(job_id: str, jobs: Jobs) -> None:
    job = jobs.get(job_id)
    if not job.terminal:
        raise JobNotFinishedError(f"the job is {job.status}: it has no artifacts yet")


def _headers(artifact: Artifact) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(artifact.sha256)).decode()
    return {
        "ETag": f'"{artifact.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(artifact.name, safe='')}",
        "X-Content-Type-Options": "nosniff",
    }


def _send(path: Path, artifact: Artifact, wanted: range | None, headers: dict[str, str]) -> Response:
    positions = range(artifact.bytes) if wanted is None else wanted
    headers["Content-Length"] = str(len(positions))
    if wanted is not None:
        headers["Content-Range"] = f"bytes {wanted.start}-{wanted.stop - 1}/{artifact.bytes}"
    status = 200 if wanted is None else 206
    return StreamingResponse(_read(path, positions), status, headers, artifact.media_type)


async def _read(path: Path, positions: range) -> AsyncIterator[bytes]:
    # Not a plain generator: one that starlette iterates over in threads stays open when the client goes away.
    with await run_in_threadpool(path.open, "rb") as file:
        file.seek(positions.start)
        left = len(positions)
        while left and (chunk := await run_in_threadpool(file.read, min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
