"""Find what nobody looks after: expired leases, jobs that no worker heard of, bytes that no record names."""

from __future__ import annotations

import logging
import threading
import time

from jobs import logs
from jobs.artifacts import ArtifactStore
from jobs.claims import SweepResult
from jobs.errors import JobsError, QueueUnavailableError
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import JobStore

log = logging.getLogger(__name__)


def sweep_forever(
    jobs: JobStore, artifacts: ArtifactStore, queue: Queue | None, settings: Settings, stopping: threading.Event
) -> None:
    """Sweep every ``sweep_seconds`` until ``stopping``. Any number of sweepers may run beside each other.

    Args:
        jobs: The store.
        artifacts: Bytes that no record names are removed from it.
        queue: Where waiting jobs are announced again; None where workers poll.
        settings: Intervals.
        stopping: Ends the loop.
    """
    grace = settings.blob_grace_seconds
    collected = time.monotonic()
    while not stopping.wait(settings.sweep_seconds):
        try:
            sweep_jobs(jobs, queue, announce_again_seconds=settings.announce_again_seconds)
            if time.monotonic() > collected + grace / 6:  # a look at every blob: seldom
                collected = time.monotonic()
                artifacts.collect(jobs.live_digests, older_than_seconds=grace)
        except (JobsError, OSError) as error:
            log.warning("sweep put off: %s", error)
        except Exception:
            log.exception("sweep put off")  # nobody would start this thread again


def sweep_jobs(jobs: JobStore, queue: Queue | None, *, announce_again_seconds: float) -> None:
    """End the jobs that no worker will, remove what is kept no longer, and announce again jobs that wait."""
    swept = jobs.sweep()
    if swept != SweepResult():
        log.info("swept: %s", swept)
    if any(expired := jobs.expire()):
        log.info("kept no longer: %d jobs, %d files", *expired)
    if queue is not None:
        _announce(jobs, queue, older_than_seconds=announce_again_seconds)


def _announce(jobs: JobStore, queue: Queue, *, older_than_seconds: float) -> None:
    """Announce again, but not where a message waits for each job: the queue would grow for as long as jobs wait."""
    for number, job_id in enumerate(jobs.unannounced(older_than_seconds=older_than_seconds)):
        try:
            if not number and queue.waiting() >= jobs.count_claimable():
                return
            queue.announce(job_id)
        except QueueUnavailableError as error:
            with logs.about(job_id=job_id):
                log.warning("job not announced: %s", error)
            return  # the next sweep tries again
        jobs.announced(job_id)
