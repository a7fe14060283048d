"""Take a job from queued to its end. Knows no Celery."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

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
    claim = jobs.claim(job_id)
    if claim is None:
        log.info("job %s has a worker or needs none", job_id)
        return
    log.info("job %s: attempt %d, token %d", job_id, claim.attempt, claim.token)
    outcome = supervise(claim)
    if outcome is None or not _finished(jobs, claim, outcome):
        log.warning("job %s: token %d is no longer ours, nothing written", job_id, claim.token)
        return
    log.info("job %s: %s", job_id, type(outcome).__name__.lower())


def _finished(jobs: JobStore, claim: Claim, outcome: Outcome) -> bool:
    """Write the outcome; while the database is away, hold on to it for a while: it may have taken hours."""
    for _ in range(FINISH_TRIES):
        try:
            return jobs.finish(claim, outcome)
        except DatabaseUnavailableError as error:
            log.warning("job %s: outcome not written: %s; trying again", claim.job_id, error)
            time.sleep(RETRY_SECONDS)
    return jobs.finish(claim, outcome)
