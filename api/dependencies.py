"""What routes are given, as Annotated aliases; and what every route under ``/v1`` asks of its caller."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Security, params
from fastapi.concurrency import run_in_threadpool
from fastapi.dependencies.utils import request_params_to_args
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.bodies import posted_spec
from api.errors import RequestRefusedError, parameter_problems
from api.rates import Rates
from jobs import logs
from jobs.artifacts import ArtifactStore
from jobs.errors import InvalidKeyError
from jobs.keys import KeyRecord, Scope, record_of, verify
from jobs.models import JobSpec, Problem
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.tenant import TenantStore


@dataclass(frozen=True)
class Services:
    """What the application works with. ``key`` is the one key that the settings name, None where stored ones count."""

    settings: Settings
    jobs: JobStore
    artifacts: ArtifactStore
    queue: Queue
    key: KeyRecord | None
    rates: Rates


# Dependencies are async: FastAPI hands each plain function to a thread, which takes longer than what these do.

_bearer = HTTPBearer(bearerFormat="mdk_<id>_<secret>", scheme_name="ApiKey", auto_error=False)


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


async def _settings(request: Request) -> Settings:
    return _services(request).settings


async def _artifacts(request: Request) -> ArtifactStore:
    return _services(request).artifacts


async def _queue(request: Request) -> Queue:
    return _services(request).queue


async def _store(request: Request) -> JobStore:
    return _services(request).jobs


ServiceSettings = Annotated[Settings, Depends(_settings)]
Artifacts = Annotated[ArtifactStore, Depends(_artifacts)]
JobQueue = Annotated[Queue, Depends(_queue)]
Store = Annotated[JobStore, Depends(_store)]
PostedSpec = Annotated[JobSpec, Depends(posted_spec)]

Limit = Annotated[int, Query(ge=1, le=200)]
After = Annotated[str | None, Query(pattern="^(job|file)_[0-9a-f]{32}$", description="The previous page's ``next``.")]


async def caller(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> KeyRecord:
    """Let only the holder of a valid API key in, and say whose it is.

    Raises:
        RequestRefusedError: 401; or 429, it asks too often.
    """
    services = _services(request)
    if credentials is not None and (record := await _record(services, credentials.credentials)):
        logs.note(tenant=record.tenant)
        services.rates.count(record.id)
        return record
    headers = {"WWW-Authenticate": 'Bearer realm="medic"'}
    raise RequestRefusedError(401, "unauthorized", "send Authorization: Bearer mdk_<id>_<secret>", headers=headers)


async def _record(services: Services, key: str) -> KeyRecord | None:
    try:
        record = services.key or await run_in_threadpool(services.jobs.find_key, record_of(key).id)
    except InvalidKeyError:
        return None
    return record if record is not None and verify(key, record) else None


Caller = Annotated[KeyRecord, Depends(caller)]


def allowed(*scopes: Scope) -> params.Depends:
    """Ask of a route's caller that the key has all of ``scopes``."""

    async def check(known: Caller) -> None:
        if missing := [scope for scope in scopes if not known.allows(scope)]:
            named = " ".join(scopes)
            headers = {"WWW-Authenticate": f'Bearer realm="medic", error="insufficient_scope", scope="{named}"'}
            detail = f"the API key {known.id} lacks the scope {', '.join(missing)}: ask for one that has it"
            raise RequestRefusedError(403, "insufficient_scope", detail, headers=headers)

    return params.Depends(check)


async def _jobs(request: Request, known: Caller) -> TenantStore:
    return _services(request).jobs.of(known.tenant)


Jobs = Annotated[TenantStore, Depends(_jobs)]
"""Files and jobs of the caller's tenant: to a route there are no others."""


async def known_query(request: Request) -> None:
    """Refuse a query parameter that the route does not know, or that is there twice.

    Raises:
        RequestRefusedError: 400, with all of them, and with what is wrong with those that it knows.
    """
    route: APIRoute = request.scope["route"]
    known = {field.alias for field in route.dependant.query_params}
    filters = {name for name in request.query_params if _METADATA.fullmatch(name) and route.name == "list_jobs"}
    counts = Counter(name for name, _ in request.query_params.multi_items())
    problems = [
        Problem(
            code="repeated" if name in known | filters else "extra_forbidden", detail=f"query parameter {name[:100]}"
        )
        for name, count in counts.items()
        if count > 1 or name not in known | filters
    ]
    if problems:
        _, errors = request_params_to_args(route.dependant.query_params, request.query_params)
        detail = "query parameters that are unknown, or there more than once"
        raise RequestRefusedError(400, "invalid_parameters", detail, *problems, *parameter_problems(errors))


_METADATA = re.compile(r"metadata\[([A-Za-z0-9_.-]{1,64})\]")


async def _metadata_filter(request: Request) -> dict[str, str]:
    named = ((_METADATA.fullmatch(name), value) for name, value in request.query_params.items())
    return {name[1]: value for name, value in named if name is not None}


MetadataFilter = Annotated[dict[str, str], Depends(_metadata_filter)]
