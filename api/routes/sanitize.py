"""One call for one small job: upload and create."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType, UnionType

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from api.bodies import JSON_LIMIT_BYTES, multipart, parse_json, parse_spec, problems_in_form
from api.dependencies import Artifacts, JobQueue, Jobs, ServiceSettings, allowed
from api.errors import RequestRefusedError
from api.idempotency import OnlyOnce
from api.openapi import FILE_PART, SPEC_PART, form, problems
from api.routes.files import keep
from api.routes.jobs import accepted, start
from jobs.errors import ArtifactTooLargeError
from jobs.idempotency import Reservation
from jobs.models import FileId, Job, Problem, Purpose

router = APIRouter(prefix="/sanitize", tags=["jobs"])

_SECTIONS: Mapping[Purpose, str] = MappingProxyType(
    {"model": "model", "clean": "clean_data", "test": "test_data", "triggered": "triggered_data"}
)
_TO_COME = FileId("file_to_come")
_REQUIRED: Mapping[str, type | UnionType] = MappingProxyType({"model": UploadFile, "spec": str | UploadFile})
_OPTIONAL: Mapping[str, type | UnionType] = MappingProxyType(
    {"clean": UploadFile, "test": UploadFile, "triggered": UploadFile}
)


@router.post(
    "",
    status_code=202,
    summary="Upload files and start a job on them",
    operation_id="sanitize",
    dependencies=[allowed("files:write", "jobs:write")],
    responses=problems(400, 408, 409, 413, 415, 422, 503, 507),
    openapi_extra=form(
        {"model": FILE_PART, "spec": SPEC_PART}, {"clean": FILE_PART, "test": FILE_PART, "triggered": FILE_PART}
    ),
)
async def sanitize(
    request: Request,
    response: Response,
    jobs: Jobs,
    artifacts: Artifacts,
    queue: JobQueue,
    settings: ServiceSettings,
    once: OnlyOnce,
) -> Job:
    """``spec`` is a job's spec as JSON text without file ids; ``target_class`` stands under ``triggered_data``."""
    left = None if once.may_be_replayed else await run_in_threadpool(jobs.bytes_left)
    async with multipart(request, settings.multipart_limit_bytes, quota_bytes=left) as parts:
        spec = await run_in_threadpool(_checked_spec, parts, await _spec_text(parts))
        uploads = [await keep(part, purpose, artifacts) for purpose, part in _files(parts)]

    def make(reservation: Reservation | None) -> Job:
        named = parse_spec(_with_ids(spec, {upload.purpose: upload.id for upload in uploads}))
        return start(named, jobs, queue, reservation, uploads)

    asked = [part for upload in uploads for part in (upload.purpose, upload.sha256, upload.filename)]
    return accepted(await once.make(Job, make, json.dumps(spec, sort_keys=True), *asked), request, response)


async def _spec_text(parts: FormData) -> bytes | None:
    spec = parts.get("spec")
    if spec is None:
        return None
    text = await spec.read(JSON_LIMIT_BYTES + 1) if isinstance(spec, UploadFile) else spec.encode()
    if len(text) > JSON_LIMIT_BYTES:
        raise ArtifactTooLargeError(f"the spec is larger than the limit of {JSON_LIMIT_BYTES} bytes")
    return text


def _checked_spec(parts: FormData, text: bytes | None) -> object:
    """Find every problem of the form and of its spec before anything is stored."""
    found = list(problems_in_form(parts, _REQUIRED, _OPTIONAL))
    spec = None if text is None else parse_json(text)
    if text is not None:
        found += _given_ids(spec)
        try:
            parse_spec(_with_ids(spec, {purpose: _TO_COME for purpose, _ in _files(parts)}))
        except RequestRefusedError as error:
            found += error.problems
    if found:
        raise RequestRefusedError(422, "invalid_form", "the form or its spec is not valid", *found)
    return spec


def _files(parts: FormData) -> Iterator[tuple[Purpose, UploadFile]]:
    for purpose in _SECTIONS:
        if isinstance(part := parts.get(purpose), UploadFile):
            yield purpose, part


def _given_ids(spec: object) -> Iterator[Problem]:
    for section in _SECTIONS.values():
        content = spec.get(section) if isinstance(spec, dict) else None
        if isinstance(content, dict) and "file_id" in content:
            detail = "the file comes with the form; POST /v1/jobs takes ids"
            yield Problem(code="extra_forbidden", detail=detail, pointer=f"/{section}/file_id")


def _with_ids(spec: object, ids: Mapping[Purpose, FileId]) -> object:
    """Name the files in the spec; what has the wrong shape is left for validation to name."""
    if not isinstance(spec, dict):
        return spec
    sections = {_SECTIONS[purpose]: file_id for purpose, file_id in ids.items()}
    named = {
        section: {**content, "file_id": file_id} if isinstance(content := spec.get(section, {}), dict) else content
        for section, file_id in sections.items()
    }
    return {**spec, **named}
