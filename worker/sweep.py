"""The sweeper of a Celery worker: ``python -m worker.sweep``. Any number may run; a polling worker sweeps by itself."""

from __future__ import annotations

import signal
import threading

from jobs import logs
from jobs.artifacts import open_artifacts
from jobs.queue import open_queue
from jobs.settings import Settings
from jobs.store import open_store
from jobs.sweeper import sweep_forever
from worker.process import die_with_parent, set_on_signal


def main() -> None:
    """Sweep until SIGTERM or SIGINT, or until the worker that started this process is gone."""
    die_with_parent()
    logs.configure()
    settings = Settings()
    stopping = threading.Event()
    set_on_signal(stopping, signal.SIGTERM, signal.SIGINT)
    sweep_forever(open_store(settings), open_artifacts(settings), open_queue(settings), settings, stopping)


if __name__ == "__main__":
    main()
