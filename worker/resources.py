"""What a worker process opens once: settings, store, artifacts, supervisor."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cache

from jobs.artifacts import ArtifactStore, open_artifacts
from jobs.settings import Settings
from jobs.store import JobStore, open_store
from worker.supervise import Supervisor


@dataclass(frozen=True)
class Resources:
    """Opened on first use, after any fork."""

    settings: Settings
    jobs: JobStore
    artifacts: ArtifactStore
    supervise: Supervisor
    stopping: threading.Event


@cache
def resources() -> Resources:
    """Open everything that the settings name; the same objects for the life of the process."""
    settings = Settings()
    jobs, artifacts = open_store(settings), open_artifacts(settings)
    stopping = threading.Event()
    return Resources(settings, jobs, artifacts, Supervisor(jobs, artifacts, settings, stopping), stopping)
