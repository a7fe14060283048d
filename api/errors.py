"""The one table from error class to HTTP status, and the problem document that every error becomes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPMethod, HTTPStatus
from itertools import islice
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from jobs import errors
from jobs.models import Problem

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
RETRY_SECONDS = 5
"""After which a service that was not available is asked again."""

WAITING_SECONDS: Mapping[str, int] = MappingProxyType(
    {errors.RequestInFlightError.code: 1, errors.TenantQueueFullError.code: 5}
)
"""After which a request is sent again that was refused for now, by the code of the refusal."""

_MAY_PASS = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.INSUFFICIENT_STORAGE})
"""What the same request need not meet again, though nobody can say when."""

MOST_PROBLEMS = 100
LONGEST_DETAIL = 500

STATUS: Mapping[type[errors.JobsError], int] = MappingProxyType(
    {
        errors.JobsError: 500,
        errors.UnknownJobError: 404,
        errors.JobExpiredError: 410,
        errors.UnknownFileError: 404,
        errors.WrongPurposeError: 422,
        errors.FileInUseError: 409,
        errors.JobNotFinishedError: 409,
        errors.JobFinishedError: 409,
        errors.UnknownArtifactError: 404,
        errors.BlobMissingError: 410,
        errors.BackupError: 500,
        errors.ArtifactTooLargeError: 413,
        errors.StorageFullError: 507,
        errors.DigestMismatchError: 400,
        errors.QueueUnavailableError: 503,
        errors.DatabaseUnavailableError: 503,
        errors.SchemaTooNewError: 503,
        errors.QueueFullError: 503,
        errors.TenantQueueFullError: 429,
        errors.StorageQuotaError: 429,
        errors.RequestInFlightError: 409,
        errors.IdempotencyKeyReusedError: 422,
        errors.InvalidKeyError: 401,
    }
)


class RequestRefusedError(Exception):
    """The request itself is at fault. ``problems`` holds every reason, not the first one."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *problems: Problem,
        headers: Mapping[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.problems, self.headers = status, code, problems, headers
        self.retry_after = retry_after


class ProblemDocument(BaseModel):
    """What went wrong (RFC 9457). ``code`` is stable; ``errors`` lists every reason; ``retry_after`` is in seconds."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    request_id: str
    errors: tuple[Problem, ...] = ()
    retryable: bool
    retry_after: int | None = None


def problem_response(
    request: Request,
    status: int,
    code: str,
    detail: str,
    problems: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
    retry_after: int | None = None,
) -> Response:
    """Put an error into its document."""
    if retry_after is None:
        retry_after = RETRY_SECONDS if status == HTTPStatus.SERVICE_UNAVAILABLE else WAITING_SECONDS.get(code)
    document = ProblemDocument(
        type=f"urn:medic:problem:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        instance=quote(request.scope["path"]),
        code=code,
        request_id=request.state.request_id,
        errors=tuple(problems[:MOST_PROBLEMS]),
        retryable=retry_after is not None or status in _MAY_PASS,
        retry_after=retry_after,
    )
    waiting = {"Retry-After": str(retry_after)} if retry_after else {}
    content = document.model_dump_json(exclude=None if retry_after else {"retry_after"})
    return Response(content, status, {**(headers or {}), **waiting}, PROBLEM_JSON)


def install(app: FastAPI) -> None:
    """Make every expected error of the application a problem document."""
    app.exception_handler(errors.JobsError)(_jobs_error)
    app.exception_handler(RequestRefusedError)(_refused)
    app.exception_handler(RequestValidationError)(_invalid_parameters)
    app.exception_handler(HTTPException)(_router_error)


def _jobs_error(request: Request, error: errors.JobsError) -> Response:
    status = STATUS[type(error)]
    if status == HTTPStatus.NOT_FOUND and error.problems:
        status = HTTPStatus.UNPROCESSABLE_ENTITY  # something that the spec names is unknown, not the address
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("%s: %s", error.code, error)
    return problem_response(request, status, error.code, str(error), error.problems)


def _refused(request: Request, error: RequestRefusedError) -> Response:
    return problem_response(
        request, error.status, error.code, str(error), error.problems, error.headers, error.retry_after
    )


def _invalid_parameters(request: Request, error: RequestValidationError) -> Response:
    problems = tuple(parameter_problems(error.errors()))
    return problem_response(request, 400, "invalid_parameters", "the request's parameters are not valid", problems)


def parameter_problems(errors: Iterable[Mapping[str, Any]]) -> Iterator[Problem]:
    """Say what FastAPI finds wrong with parameters of a request."""
    for item in errors:
        detail = f"{item['loc'][0]} parameter {item['loc'][-1]}: {item['msg']}"
        yield Problem(code=item["type"], detail=_detail(detail))


def _router_error(request: Request, error: HTTPException) -> Response:
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    headers = error.headers
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # the router names those of the first route alone
        headers = {"Allow": ", ".join(sorted(_methods_at(request)))}
    return problem_response(request, error.status_code, code, str(error.detail), headers=headers)


def _methods_at(request: Request) -> Iterator[str]:
    for method in HTTPMethod:
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.routes):
            yield method


def pointer(parts: Iterable[str | int]) -> str:
    """Write a JSON pointer (RFC 6901) that any client can decode."""
    escaped = (str(part).replace("~", "~0").replace("/", "~1") for part in parts)
    return "".join(f"/{part}" for part in escaped).encode(errors="replace").decode()


def problems_of(error: ValidationError, value: object) -> Iterator[Problem]:
    """Say what is wrong with ``value``, with pointers into it rather than into the schema; as much as is shown."""
    for item in islice(error.errors(include_url=False, include_context=False, include_input=False), MOST_PROBLEMS):
        parts = _parts_within(value, item["loc"], missing=item["type"] == "missing")
        yield Problem(code=item["type"], detail=_detail(item["msg"]), pointer=pointer(parts))


def _parts_within(value: Any, location: Sequence[str | int], *, missing: bool) -> Iterator[str | int]:
    """Leave out what pydantic adds to a location (tags of unions, names of types) and the value does not have."""
    for index, part in enumerate(location):
        within = part in value if isinstance(value, dict) else isinstance(value, list) and part in range(len(value))
        if within:
            value = value[part]
            yield part
        elif missing and index == len(location) - 1:
            yield part


def _detail(message: str) -> str:
    return message if len(message) <= LONGEST_DETAIL else message[:LONGEST_DETAIL] + "…"
