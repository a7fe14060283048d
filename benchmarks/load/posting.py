"""A thousand jobs are posted within a minute, and four workers end each of them once.

Their children do no work (``stand_in.py``), so that what is pressed is all the rest: on SQLite with workers that poll,
and on PostgreSQL with Celery workers that hear of jobs through Redis.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load.figures import Measured, Target, spread
from benchmarks.load.service import STAND_IN_CELERY, STAND_IN_POLLING, Service, running, small_spec
from benchmarks.servers import postgresql_server, redis_server
from benchmarks.stack import wait_for
from jobs.models import JobId, JobSpec
from medic_client.client import MedicClient

JOBS = 1000
WORKERS = 4
CLIENTS = 8
MOST_SECONDS = 60.0
END_SECONDS = 900.0
ENDED = re.compile(r"\bjob_id=(job_\w+)\b.*: job let go of: \w+$", re.MULTILINE)
"""What a worker logs once the outcome that it brought was accepted."""


def measure(folder: Path, scale: float) -> Measured:
    """Post, wait and count, with either backend."""
    count = round(JOBS * scale)
    targets: list[Target] = []
    figures: dict[str, Any] = {"jobs": count, "workers": WORKERS, "clients": CLIENTS}
    with running(folder / "sqlite", *[STAND_IN_POLLING] * WORKERS) as service:
        figures["sqlite"] = _pressed(service, folder, count, "SQLite", targets)
    with _servers() as settings:
        celery = [STAND_IN_CELERY] * WORKERS
        with running(folder / "postgresql", *celery, settings=settings) as service:
            figures["postgresql"] = _pressed(service, folder, count, "PostgreSQL", targets)
    return Measured(targets, figures)


@contextmanager
def _servers() -> Iterator[Mapping[str, str]]:
    with postgresql_server(durable=True) as database, redis_server() as broker:
        yield {"MEDIC_DATABASE_URL": database.url, "MEDIC_BROKER_URL": broker.url}


def _pressed(service: Service, folder: Path, count: int, name: str, targets: list[Target]) -> dict[str, Any]:
    with service.client() as client:
        spec = small_spec(client, folder)
        began = time.monotonic()
        posted, took = _posted(service, spec, count)
        posting = time.monotonic() - began
        wait_for(lambda: not _waiting(client), END_SECONDS)
        ending = time.monotonic() - began
        succeeded = _succeeded(client)
    ends = Counter(job_id for log in service.logs for job_id in ENDED.findall(log.read_text()))
    once = sum(job_id in succeeded and ends[job_id] == 1 for job_id in posted)
    targets += [
        Target(f"seconds to post all, {name}", posting, at_most=MOST_SECONDS),
        Target(f"jobs that ended once, and well, {name}", once, at_least=count),
        Target(f"ends in all, {name}", ends.total(), at_most=count),
    ]
    per_worker = [len(ENDED.findall(log.read_text())) for log in service.logs]
    return {"post": spread(took), "seconds_until_the_last_ended": round(ending, 1), "jobs_per_worker": per_worker}


def _posted(service: Service, spec: JobSpec, count: int) -> tuple[set[JobId], list[float]]:
    def post(client: MedicClient) -> tuple[JobId, float]:
        began = time.monotonic()
        job_id = client.create_job(spec).id
        return job_id, time.monotonic() - began

    with ExitStack() as stack, ThreadPoolExecutor(CLIENTS) as threads:
        clients = [stack.enter_context(service.client()) for _ in range(CLIENTS)]
        answers = list(threads.map(post, [clients[number % CLIENTS] for number in range(count)]))
    return {job_id for job_id, _ in answers}, [seconds for _, seconds in answers]


def _waiting(client: MedicClient) -> bool:
    return any(client.jobs(status=status, limit=1).jobs for status in ("queued", "running", "cancelling"))


def _succeeded(client: MedicClient) -> set[JobId]:
    page = client.jobs(status="succeeded", limit=200)
    found = {job.id for job in page.jobs}
    while page.next:
        page = client.jobs(status="succeeded", limit=200, after=page.next)
        found |= {job.id for job in page.jobs}
    return found
