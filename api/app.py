"""The application: routes, error handlers, start-up; no logic."""

from __future__ import annotations

from types import MethodType

from fastapi import APIRouter, Depends, FastAPI

from api import errors, openapi
from api.deadlines import USUAL_PATIENCE, Patience
from api.dependencies import Services, caller, known_query
from api.envelope import Envelope
from api.rates import Rates
from api.routes import artifacts as artifact_routes
from api.routes import files, health, methods, sanitize
from api.routes import jobs as job_routes
from jobs.artifacts import ArtifactStore
from jobs.keys import record_of
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import JobStore

_DESCRIPTION = "Repairs image classifiers that may carry a hidden backdoor."


def create_app(
    settings: Settings, jobs: JobStore, artifacts: ArtifactStore, queue: Queue, patience: Patience = USUAL_PATIENCE
) -> FastAPI:
    """Put the service together.

    Raises:
        InvalidKeyError: The settings name an API key that is none.
    """
    app = FastAPI(
        title="MEDIC",
        version="1",
        description=_DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        responses=openapi.ANY_PROBLEM,
    )
    key = record_of(settings.api_key.get_secret_value()) if settings.api_key else None
    app.state.services = Services(settings, jobs, artifacts, queue, key, Rates(settings.requests_per_minute))
    app.add_middleware(Envelope, patience=patience)
    errors.install(app)
    app.include_router(health.router)
    app.include_router(_v1())
    app.openapi = MethodType(openapi.document, app)  # type: ignore[method-assign]
    return app


def _v1() -> APIRouter:
    guarded = [Depends(caller), Depends(known_query)]
    router = APIRouter(prefix="/v1", dependencies=guarded, responses=openapi.problems(400, 401, 403, 429))
    for routes in (files, sanitize, job_routes, artifact_routes, methods):
        router.include_router(routes.router)
    return router
