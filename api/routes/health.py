"""Alive, and ready: for whoever starts and watches the process. Without a key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter

from api.dependencies import Artifacts, ServiceSettings, Store
from api.errors import RequestRefusedError
from api.openapi import problems
from jobs.errors import JobsError
from jobs.models import Problem, Ready, Reply
from jobs.workers import present

router = APIRouter(tags=["health"])


class Alive(Reply):
    """The process answers."""

    status: Literal["alive"] = "alive"


@router.get("/livez", summary="Is the process alive?", operation_id="get_liveness")
def get_liveness() -> Alive:
    """Asks nothing of database or disk."""
    return Alive()


@router.get("/readyz", summary="Can it take jobs?", operation_id="get_readiness", responses=problems(503))
def get_readiness(store: Store, artifacts: Artifacts, settings: ServiceSettings) -> Ready:
    """The database answers and the artifact store can be written. Says, too, what sandbox the workers have."""
    found = []
    try:
        store.check()
    except JobsError as error:
        found.append(Problem(code=error.code, detail=str(error)))
    try:
        with artifacts.writer() as writer:
            writer.write(b"\0")
    except JobsError as error:
        found.append(Problem(code=error.code, detail=str(error)))
    except OSError as error:
        found.append(
            Problem(code="storage_unavailable", detail=f"the artifact store refuses writing: {error.strerror}")
        )
    if found:
        raise RequestRefusedError(503, "not_ready", "the service cannot take jobs", *found)
    return Ready(queue="celery" if settings.broker_url else "polling", workers=present(settings.data_dir))
