"""Lists of jobs in a table of 100,000 that have ended, on SQLite and on PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import insert, make_url

from benchmarks.load.figures import Measured, Target, p99, spread
from benchmarks.load.service import Service, running
from benchmarks.load.stand_in import HALF
from benchmarks.servers import postgresql_server
from jobs.database import engine_of, writing
from jobs.models import DataSpec, FileId, JobSpec, ModelSpec, Status, Summary
from jobs.tables import DEFAULT_TENANT, job_inputs, jobs
from jobs.tenant import new_id

JOBS = 100_000
REQUESTS = 200
MOST_MS = 200.0
BATCH = 2000
OTHERS_EVERY = 10
"""Every so many jobs, one is another tenant's, and never shown."""

_SPEC = JobSpec(
    model=ModelSpec(file_id=FileId(new_id("file")), architecture="medic/wide_resnet16_1"),
    clean_data=DataSpec(file_id=FileId(new_id("file"))),
).model_dump(mode="json")
_SUMMARY = Summary(clean_accuracy=HALF).model_dump(mode="json")


def measure(folder: Path, scale: float) -> Measured:
    """Fill the table, then ask for page after page."""
    targets: list[Target] = []
    figures: dict[str, Any] = {"jobs": round(JOBS * scale)}
    with running(folder / "sqlite") as service:
        url = f"sqlite:///{folder}/sqlite/data/medic.sqlite3"
        figures["sqlite"] = _measured(service, url, scale, "SQLite", targets)
    with (
        postgresql_server(durable=True) as database,
        running(folder / "pg", settings={"MEDIC_DATABASE_URL": database.url}) as service,
    ):
        figures["postgresql"] = _measured(service, database.url, scale, "PostgreSQL", targets)
    return Measured(targets, figures)


def _measured(service: Service, url: str, scale: float, name: str, targets: list[Target]) -> dict[str, Any]:
    ids = fill(url, round(JOBS * scale))
    middle = ids[len(ids) // 2]
    pages = {
        "first": {},
        "largest": {"limit": "200"},
        "succeeded": {"status": "succeeded"},
        "failed": {"status": "failed"},
        "running": {"status": "running"},
        "middle": {"after": middle},
        "middle_failed": {"after": middle, "status": "failed"},
    }
    figures = {}
    with httpx.Client(base_url=service.url, headers=service.headers, timeout=60) as http:
        for page, params in pages.items():
            seconds = [_asked(http, params) for _ in range(max(10, round(REQUESTS * scale)))]
            targets.append(Target(f"p99 of page {page}, {name}, ms", p99(seconds), at_most=MOST_MS))
            figures[page] = spread(seconds)
    return figures


def _asked(http: httpx.Client, params: dict[str, str]) -> float:
    began = time.monotonic()
    http.get("/v1/jobs", params=params).raise_for_status()
    return time.monotonic() - began


def fill(url: str, count: int) -> list[str]:
    """Insert jobs that have ended, one in fifty of them badly; return their ids, the oldest first."""
    engine = engine_of(make_url(url))
    rows = list(_rows(count))
    for start in range(0, count, BATCH):
        batch = rows[start : start + BATCH]
        inputs = [_input(row["id"], role) for row in batch for role in ("model", "clean")]
        with writing(engine) as connection:
            connection.execute(insert(jobs), batch)
            connection.execute(insert(job_inputs), inputs)
    engine.dispose()
    return [row["id"] for row in rows]


def _rows(count: int) -> Iterator[dict[str, Any]]:
    now = time.time_ns() // 1_000_000
    for number in range(count):
        status: Status = "failed" if number % 50 == 0 else "succeeded"
        tenant = "other" if number % OTHERS_EVERY == 1 else DEFAULT_TENANT
        times = {"created": now, "started": now, "finished": now, "deadline": now}
        yield {"id": new_id("job"), "tenant": tenant, "spec": _SPEC, "status": status, **times, "summary": _SUMMARY}


def _input(job_id: str, role: str) -> dict[str, Any]:
    return {"job_id": job_id, "role": role, "file_id": new_id("file"), "sha256": "0" * 64, "bytes": 1}
