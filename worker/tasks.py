"""The Celery app of the worker: ``celery -A worker.tasks worker``. Its processes never import torch."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from typing import Any, NoReturn

from celery import bootsteps
from celery.signals import setup_logging, worker_process_init, worker_shutting_down
from pydantic import ValidationError

from jobs import logs
from jobs.models import JobId
from jobs.queue import RUN_JOB, celery_app
from jobs.settings import Settings, faults
from worker.entry import RefusedStartError, enter
from worker.process import PARENT_PID, die_with_parent, set_on_signal
from worker.resources import stopping, supervisor
from worker.run import run

log = logging.getLogger("worker")

DRAIN = signal.SIGUSR2
"""To a process of the pool. Celery itself sends SIGUSR1 there and ignores SIGTERM in a warm shutdown."""
SWEEPER_CHECK_SECONDS = 2.0


@setup_logging.connect  # type: ignore[untyped-decorator]
def _log_as_all_do(**_: Any) -> None:
    """Instead of what Celery would set up."""
    logs.configure()


def _refuse_start(reason: str) -> NoReturn:
    log.critical("the worker does not start: %s", reason)
    sys.exit(os.EX_CONFIG)


def _broker_url() -> str:
    logs.configure()  # Celery warns of things before it sets its logs up
    try:
        broker = Settings().broker_url
    except ValidationError as error:
        _refuse_start(faults(error))
    if broker is None:
        _refuse_start("MEDIC_BROKER_URL is not set. Without a broker, start `python -m worker`, which polls.")
    return broker.get_secret_value()


app = celery_app(_broker_url())


@app.task(name=RUN_JOB, ignore_result=True)  # type: ignore[untyped-decorator]
def run_job(job_id: str) -> None:
    """Run one job. All that is worth testing is in ``run``, which knows no Celery."""
    run(JobId(job_id), jobs=supervisor().jobs, supervise=supervisor())


@worker_process_init.connect  # type: ignore[untyped-decorator]
def _hear_of_the_end(**_: Any) -> None:
    """In a process of the pool: die with the worker, and give the running job back when it has to end."""
    die_with_parent()
    set_on_signal(stopping(), DRAIN)  # and open nothing: Celery swallows what is raised here


class DrainStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Has the pool give back its running job on SIGTERM; by itself Celery would wait until it has ended."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Listen for the worker's shutdown."""

        def drain(**_: Any) -> None:
            if worker.pool is None:  # a cold shutdown: the pool is gone already, and the leases run out
                return
            for process in worker.pool.info["processes"]:
                os.kill(process, DRAIN)

        worker_shutting_down.connect(drain, weak=False)


class EntryStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tests the sandbox before the first job is taken, and shows this worker to the others while it lives."""

    def start(self, _worker: Any) -> None:
        """Register, or end the worker."""
        try:
            self._registered = enter(Settings())
        except RefusedStartError as error:
            log.critical("the worker does not start: %s", error)
            sys.exit(error.status)


class SweeperStep(bootsteps.StartStopStep):  # type: ignore[misc]
    """Keeps a sweeper beside the worker, as a process: threads of the parent would not go well with its forks."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self._sweeper: subprocess.Popen[bytes] | None = None

    def start(self, worker: Any) -> None:
        """Start the sweeper, and look every few seconds whether it still runs."""
        self._ensure()
        worker.timer.call_repeatedly(SWEEPER_CHECK_SECONDS, self._ensure)

    def terminate(self, _worker: Any) -> None:
        """End the sweeper with the worker."""
        if self._sweeper is not None:
            self._sweeper.terminate()
            self._sweeper.wait()
            self._sweeper = None

    stop = terminate

    def _ensure(self) -> None:
        if self._sweeper is None or self._sweeper.poll() is not None:
            environment = {**os.environ, PARENT_PID: str(os.getpid())}
            self._sweeper = subprocess.Popen([sys.executable, "-m", "worker.sweep"], env=environment)


app.steps["worker"].update((DrainStep, EntryStep, SweeperStep))
