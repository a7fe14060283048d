"""Start, list, follow, cancel and delete jobs."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response

from api.dependencies import After, JobQueue, Jobs, Limit, MetadataFilter, PostedSpec, allowed
from api.idempotency import OnlyOnce
from api.openapi import METADATA_PARAMETER, SPEC_BODY, problems
from api.ranges import matches
from jobs import logs
from jobs.errors import QueueUnavailableError
from jobs.idempotency import Reservation
from jobs.models import Digest, Job, JobPage, JobSpec, Status
from jobs.tenant import Upload

log = logging.getLogger(__name__)

router = APIRouter(prefix="/jobs", tags=["jobs"])

POLL_SECONDS = "1"


@router.post(
    "",
    status_code=202,
    summary="Start a sanitization job",
    operation_id="create_job",
    dependencies=[allowed("jobs:write")],
    responses=problems(400, 408, 409, 413, 422, 503),
    openapi_extra=SPEC_BODY,
)
async def create_job(
    spec: PostedSpec, jobs: Jobs, queue: JobQueue, once: OnlyOnce, request: Request, response: Response
) -> Job:
    """The answer means that the job is durable; ``Location`` says where to follow it."""
    asked = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    job = await once.make(Job, lambda reservation: start(spec, jobs, queue, reservation), asked)
    return accepted(job, request, response)


def start(
    spec: JobSpec, jobs: Jobs, queue: JobQueue, reservation: Reservation | None, uploads: Sequence[Upload] = ()
) -> Job:
    """Record a job and what came with it, then tell the workers."""
    job = jobs.create(spec, reservation, uploads)  # committed before any worker can hear of it
    with logs.about(job_id=job.id):
        log.info("job created")
        try:
            queue.announce(job.id)
        except QueueUnavailableError as error:
            log.warning("the job waits for the sweeper to announce it: %s", error)
        except Exception:  # the job is recorded, and an error would deny it
            log.exception("the job waits for the sweeper to announce it")
    return job


def accepted(job: Job, request: Request, response: Response) -> Job:
    """Say where to follow a job that was just created."""
    job = with_links(job, request)
    response.headers["Location"] = job.links["self"]
    response.headers["Retry-After"] = POLL_SECONDS
    return job


def with_links(job: Job, request: Request) -> Job:
    """Say where to go from here. Paths, since what a client calls this host is no business of the record."""
    own = str(request.app.url_path_for("get_job", job_id=job.id))
    return job.model_copy(update={"links": {"self": own, "cancel": f"{own}/cancel", "artifacts": f"{own}/artifacts"}})


@router.get(
    "",
    summary="List jobs, newest first",
    operation_id="list_jobs",
    dependencies=[allowed("jobs:read")],
    responses=problems(400),
    openapi_extra=METADATA_PARAMETER,
)
def list_jobs(
    request: Request,
    jobs: Jobs,
    metadata: MetadataFilter,
    status: Status | None = None,
    model_sha256: Digest | None = None,
    limit: Limit = 50,
    after: After = None,
) -> JobPage:
    """Page by page: ``next`` of one goes into ``after`` for the following."""
    page = jobs.list_jobs(status=status, model_sha256=model_sha256, metadata=metadata, limit=limit, after=after)
    return page.model_copy(update={"jobs": tuple(with_links(job, request) for job in page.jobs)})


@router.get(
    "/{job_id}",
    summary="Follow a job",
    operation_id="get_job",
    dependencies=[allowed("jobs:read")],
    response_model=Job,
    responses={304: {"description": "Not Modified"}, **problems(404, 410)},
)
def get_job(
    job_id: str, request: Request, jobs: Jobs, if_none_match: Annotated[str | None, Header()] = None
) -> Response:
    """The ETag changes with anything in the answer; ``Retry-After`` is there until the job has ended."""
    job = with_links(jobs.get(job_id), request)
    content = job.model_dump_json(by_alias=True).encode()
    headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
    if not job.terminal:
        headers["Retry-After"] = POLL_SECONDS
    if matches(if_none_match, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type="application/json")


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    summary="Cancel a job",
    operation_id="cancel_job",
    dependencies=[allowed("jobs:write")],
    responses=problems(404, 409),
)
def cancel_job(job_id: str, request: Request, jobs: Jobs) -> Job:
    """A waiting job is cancelled at once, a running one when its process is dead."""
    return with_links(jobs.request_cancel(job_id), request)


@router.delete(
    "/{job_id}",
    status_code=204,
    summary="Delete a job",
    operation_id="delete_job",
    dependencies=[allowed("jobs:write")],
    responses=problems(404, 409),
)
def delete_job(job_id: str, jobs: Jobs) -> None:
    """Only one that has ended; its artifacts go with it."""
    jobs.delete(job_id)
