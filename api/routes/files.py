"""Upload a suspect model, clean, test or triggered data; list, look up and delete what was uploaded."""

from __future__ import annotations

from functools import partial
from typing import Annotated, get_args

from fastapi import APIRouter, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from api.bodies import bounded, multipart, problems_in_form
from api.dependencies import After, Artifacts, Jobs, Limit, ServiceSettings, allowed
from api.errors import RequestRefusedError
from api.idempotency import OnlyOnce
from api.openapi import FILE_PART, form, problems
from api.openapi import body as body_of
from api.uploads import announced_sha256, chunks_of, displayable, store
from jobs.models import File, FilePage, Problem, Purpose
from jobs.tenant import Upload

router = APIRouter(prefix="/files", tags=["files"])

_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


@router.put(
    "",
    status_code=201,
    summary="Upload a file: the raw bytes are the body",
    operation_id="upload_file",
    dependencies=[allowed("files:write")],
    responses=problems(400, 408, 413, 507),
    openapi_extra=body_of("application/octet-stream", {}),
)
async def upload_file(
    request: Request,
    response: Response,
    jobs: Jobs,
    artifacts: Artifacts,
    settings: ServiceSettings,
    purpose: Purpose,
    filename: str = "",
    content_digest: Annotated[list[str] | None, Header(description="RFC 9530, sha-256; checked when sent.")] = None,
) -> File:
    """Stream the body to disk. ``curl -T model.pth '…/v1/files?purpose=model&filename=model.pth'`` does it."""
    _refuse_what_is_not_whole(request)
    announced = announced_sha256(content_digest or ())
    left = await run_in_threadpool(jobs.bytes_left)
    body = bounded(request, settings.upload_limit_bytes, quota_bytes=left)
    blob = await store(body, artifacts, sha256=announced)
    upload = Upload(blob.sha256, blob.size, purpose, displayable(filename))
    file = await run_in_threadpool(jobs.add_file, upload)
    response.headers["Location"] = request.app.url_path_for("get_file", file_id=file.id)
    return file


def _refuse_what_is_not_whole(request: Request) -> None:
    for header in ("content-range", "content-encoding"):
        if header in request.headers:  # stored as it is, it would be another file than the one meant
            raise RequestRefusedError(
                400, "partial_or_encoded", f"{header} is not supported: send the whole file as it is"
            )


@router.post(
    "",
    status_code=201,
    summary="Upload a small file as a form",
    operation_id="upload_form",
    dependencies=[allowed("files:write")],
    responses=problems(400, 408, 409, 413, 415, 422, 507),
    openapi_extra=form({"file": FILE_PART, "purpose": {"enum": list(_PURPOSES)}}, {}),
)
async def upload_form(
    request: Request, response: Response, jobs: Jobs, artifacts: Artifacts, settings: ServiceSettings, once: OnlyOnce
) -> File:
    """Larger files go through PUT."""
    left = None if once.may_be_replayed else await run_in_threadpool(jobs.bytes_left)
    async with multipart(request, settings.multipart_limit_bytes, quota_bytes=left) as parts:
        found = list(problems_in_form(parts, {"file": UploadFile, "purpose": str}, {}))
        file, purpose = parts.get("file"), parts.get("purpose")
        if isinstance(purpose, str) and purpose not in _PURPOSES:
            found.append(Problem(code="enum", detail=f"must be one of {', '.join(_PURPOSES)}", pointer="/purpose"))
        if found or not isinstance(file, UploadFile):
            raise RequestRefusedError(422, "invalid_form", "the form is not valid", *found)
        known = next(known for known in _PURPOSES if known == purpose)
        upload = await keep(file, known, artifacts)
        asked = (upload.sha256, upload.purpose, upload.filename)
        stored = await once.make(File, partial(jobs.add_file, upload), *asked)
    response.headers["Location"] = request.app.url_path_for("get_file", file_id=stored.id)
    return stored


async def keep(part: UploadFile, purpose: Purpose, artifacts: Artifacts) -> Upload:
    """Store a part of a form. Until it is recorded it may be collected."""
    blob = await store(chunks_of(part), artifacts)
    return Upload(blob.sha256, blob.size, purpose, displayable(part.filename or ""))


@router.get(
    "",
    summary="List files, newest first",
    operation_id="list_files",
    dependencies=[allowed("jobs:read")],
    responses=problems(400),
)
def list_files(jobs: Jobs, limit: Limit = 50, after: After = None) -> FilePage:
    """Page by page: ``next`` of one goes into ``after`` for the following."""
    return jobs.list_files(limit=limit, after=after)


@router.get(
    "/{file_id}",
    summary="Look a file up",
    operation_id="get_file",
    dependencies=[allowed("jobs:read")],
    responses=problems(404),
)
def get_file(file_id: str, jobs: Jobs) -> File:
    """``inspection`` is null until a job has read the file."""
    return jobs.get_file(file_id)


@router.delete(
    "/{file_id}",
    status_code=204,
    summary="Delete a file",
    operation_id="delete_file",
    dependencies=[allowed("files:write")],
    responses=problems(404, 409),
)
def delete_file(file_id: str, jobs: Jobs) -> None:
    """Refused while a job that has not ended needs it."""
    jobs.delete_file(file_id)
