"""The polling worker, ``python -m worker``: for one machine, no broker. It sweeps as well."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading

from pydantic import ValidationError

from jobs import logs
from jobs.errors import JobsError
from jobs.settings import faults
from jobs.sweeper import sweep_forever
from worker.entry import RefusedStartError, enter
from worker.process import set_on_signal
from worker.resources import supervisor
from worker.run import run
from worker.supervise import Supervisor

log = logging.getLogger("worker")


def poll(opened: Supervisor) -> None:
    """Run waiting jobs one after the other, until asked to stop."""
    while not opened.stopping.is_set():
        try:
            for job_id in opened.jobs.claimable(limit=1):
                run(job_id, jobs=opened.jobs, supervise=opened)
        except (JobsError, OSError, ValidationError) as error:
            log.warning("%s", error)
        except Exception:
            log.exception("unforeseen; the next job is looked for")  # of one job: others need this worker
        opened.stopping.wait(opened.settings.poll_seconds)


def main() -> None:
    """Poll until SIGTERM or SIGINT; the running job then goes back to the queue."""
    logs.configure()
    try:
        opened = supervisor()
        registered = enter(opened.settings)
    except (ValidationError, JobsError, RefusedStartError) as error:
        log.critical("the worker does not start: %s", faults(error) if isinstance(error, ValidationError) else error)
        sys.exit(_status(error))
    set_on_signal(opened.stopping, signal.SIGTERM, signal.SIGINT)
    sweeper = threading.Thread(
        target=sweep_forever,
        args=(opened.jobs, opened.artifacts, None, opened.settings, opened.stopping),
        daemon=True,
    )
    sweeper.start()
    log.info("worker ready, polling")
    with registered:
        poll(opened)


def _status(error: Exception) -> int:
    if isinstance(error, RefusedStartError):
        return error.status
    return os.EX_CONFIG if isinstance(error, ValidationError) else 1


if __name__ == "__main__":
    main()
