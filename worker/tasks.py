"""The Celery app of the worker: ``celery -A worker.tasks worker``. Its processes never import torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from celery.signals import worker_ready, worker_shutdown

from jobs.models import JobId
from jobs.queue import RUN_JOB, celery_app
from jobs.settings import Settings
from worker.resources import resources
from worker.run import run


def _broker_url() -> str:
    broker = Settings().broker_url
    if broker is None:
        raise SystemExit("MEDIC_BROKER_URL is not set. Without a broker, start `python -m worker`, which polls.")
    return broker.get_secret_value()


app = celery_app(_broker_url())


@app.task(name=RUN_JOB, ignore_result=True)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run one job. All that is worth testing is in ``run``, which knows no Celery."""
    opened = resources()
    run(JobId(job_id), jobs=opened.jobs, supervise=opened.supervise)
