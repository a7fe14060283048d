"""Find what nobody looks after: expired leases, jobs that no worker heard of, bytes that no record names."""

from __future__ import annotations

import logging
import threading

from jobs.artifacts import ArtifactStore
from jobs.errors import DatabaseUnavailableError, QueueUnavailableError
from jobs.queue import Queue
from jobs.settings import Settings
from jobs.store import JobStore

log = logging.getLogger(__name__)


def sweep_forever(
    jobs: JobStore, artifacts: ArtifactStore, queue: Queue, settings: Settings, stopping: threading.Event
) -> None:
    """Sweep every ``sweep_seconds`` until ``stopping``. Any number of sweepers may run beside each other."""
    while not stopping.is_set():
        try:
            sweep_once(jobs, artifacts, queue, settings)
        except (DatabaseUnavailableError, OSError) as error:
            log.warning("sweep put off: %s", error)
        stopping.wait(settings.sweep_seconds)


def sweep_once(jobs: JobStore, artifacts: ArtifactStore, queue: Queue, settings: Settings) -> None:
    """End what has to end, announce again what waits, and remove bytes that no record names."""
    swept = jobs.sweep()
    if swept.cancelled or swept.worker_lost or swept.deadline_exceeded:
        log.info("swept: %s", swept)
    _announce(jobs, queue, older_than_seconds=settings.announce_again_seconds)
    artifacts.collect(jobs.live_digests, older_than_seconds=settings.blob_grace_seconds)


def _announce(jobs: JobStore, queue: Queue, *, older_than_seconds: float) -> None:
    for job_id in jobs.unannounced(older_than_seconds=older_than_seconds):
        try:
            queue.announce(job_id)
        except QueueUnavailableError as error:
            log.warning("job %s not announced: %s", job_id, error)
            return  # the next sweep tries again
        jobs.announced(job_id)
