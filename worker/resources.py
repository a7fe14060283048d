"""What a worker process opens once."""

from __future__ import annotations

import threading
from functools import cache

from jobs.artifacts import open_artifacts
from jobs.settings import Settings
from jobs.store import open_store
from worker.supervise import Supervisor


@cache
def stopping() -> threading.Event:
    """Set when this process has to end. It is there before anything is opened, which may fail for a while."""
    return threading.Event()


@cache
def supervisor() -> Supervisor:
    """Open everything that the settings name, on first use and so after any fork; the same for the process's life."""
    settings = Settings()
    return Supervisor(open_store(settings), open_artifacts(settings), settings, stopping())
