"""Take a job from queued to its end. Knows no Celery."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from jobs import logs
from jobs.claims import Claim, Outcome
from jobs.errors import DatabaseUnavailableError
from jobs.models import JobId
from jobs.store import JobStore

log = logging.getLogger(__name__)

FINISH_TRIES = 600
RETRY_SECONDS = 1.0


def run(job_id: JobId, *, jobs: JobStore, supervise: Callable[[Claim], Outcome | None]) -> None:
    """Run one job if it has no worker. Harmless when announced twice.

    Args:
        job_id: Of the job.
        jobs: The store.
        supervise: Does the work; returns None when the claim was lost on the way, and then nothing is written.
    """
    with logs.about(job_id=job_id):
        claim = jobs.claim(job_id)
        if claim is None:
            log.info("the job has a worker or needs none")
            return
        with logs.about(tenant=claim.tenant, attempt=claim.attempt, token=claim.token):
            log.info("job claimed")
            outcome = supervise(claim)
            written = None if outcome is None else _finish(jobs, claim, outcome)
            if written is None:
                log.warning("the job is no longer ours, nothing written")
            else:
                log.info("job let go of: %s", type(written).__name__.lower())


def _finish(jobs: JobStore, claim: Claim, outcome: Outcome) -> Outcome | None:
    """Write the outcome; while the database is away, hold on to it for a while: it may have taken hours."""
    for _ in range(FINISH_TRIES):
        try:
            return jobs.finish(claim, outcome)
        except DatabaseUnavailableError as error:
            log.warning("outcome not written: %s; trying again", error)
            time.sleep(RETRY_SECONDS)
    return jobs.finish(claim, outcome)
