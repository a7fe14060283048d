"""What routes are given, as Annotated aliases; and what every route under ``/v1`` asks of its caller."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Query, Request, Security
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from api.bodies import posted_spec
from api.errors import RequestRefusedError
from jobs.artifacts import ArtifactStore
from jobs.keys import KeyRecord, verify
from jobs.models import JobSpec, Problem
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import JobStore


@dataclass(frozen=True)
class Services:
    """What the application works with. ``key`` is the key that the settings name, None where the stored one counts."""

    settings: Settings
    jobs: JobStore
    artifacts: ArtifactStore
    queue: Queue
    key: KeyRecord | None


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


_Services = Annotated[Services, Depends(_services)]
_bearer = HTTPBearer(bearerFormat="mdk_<id>_<secret>", scheme_name="ApiKey", auto_error=False)


def _settings(services: _Services) -> Settings:
    return services.settings


def _jobs(services: _Services) -> JobStore:
    return services.jobs


def _artifacts(services: _Services) -> ArtifactStore:
    return services.artifacts


def _queue(services: _Services) -> Queue:
    return services.queue


ServiceSettings = Annotated[Settings, Depends(_settings)]
Jobs = Annotated[JobStore, Depends(_jobs)]
Artifacts = Annotated[ArtifactStore, Depends(_artifacts)]
JobQueue = Annotated[Queue, Depends(_queue)]
PostedSpec = Annotated[JobSpec, Depends(posted_spec)]

Limit = Annotated[int, Query(ge=1, le=200)]
After = Annotated[str | None, Query(description="The previous page's ``next``.")]


def authorized(
    services: _Services, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
) -> None:
    """Let only the holder of the API key in.

    Raises:
        RequestRefusedError: 401.
    """
    record = services.key or services.jobs.key_digest()
    if credentials is None or record is None or not verify(credentials.credentials, record):
        headers = {"WWW-Authenticate": 'Bearer realm="medic"'}
        raise RequestRefusedError(401, "unauthorized", "send Authorization: Bearer mdk_<id>_<secret>", headers=headers)


def known_query(request: Request) -> None:
    """Refuse a query parameter that the route does not know, or that is there twice.

    Raises:
        RequestRefusedError: 400, with all of them.
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
        detail = "query parameters that are unknown, or there more than once"
        raise RequestRefusedError(400, "invalid_parameters", detail, *problems)


_METADATA = re.compile(r"metadata\[([A-Za-z0-9_.-]{1,64})\]")


def _metadata_filter(request: Request) -> dict[str, str]:
    named = ((_METADATA.fullmatch(name), value) for name, value in request.query_params.items())
    return {name[1]: value for name, value in named if name is not None}


MetadataFilter = Annotated[dict[str, str], Depends(_metadata_filter)]
