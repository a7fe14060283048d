"""What a worker does before it takes its first job: test its sandbox, and tell the others about it."""

from __future__ import annotations

import logging
import os
from typing import IO

from jobs.models import WorkerSandbox
from jobs.settings import Settings
from jobs.workers import register
from worker.sandbox.confine import lacking
from worker.sandbox.probe import SelfTestFailedError, probe

log = logging.getLogger(__name__)


class RefusedStartError(Exception):
    """The worker must not start. ``status`` is what to exit with."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def enter(settings: Settings) -> IO[str]:
    """Test the sandbox, log what is active, and register this worker until what is returned is closed.

    Raises:
        RefusedStartError: ``MEDIC_SANDBOX=strict`` asks for what is missing, or the self-test itself failed.
    """
    try:
        layers = probe()
    except SelfTestFailedError as error:
        raise RefusedStartError(str(error), 1) from error
    for layer in layers:
        log.log(
            logging.INFO if layer.state == "active" else logging.WARNING,
            "sandbox: %s %s (%s)",
            *(layer.name, layer.state, layer.detail),
        )
    if settings.sandbox == "strict" and (missing := lacking(layers)):
        raise RefusedStartError(f"MEDIC_SANDBOX=strict, and the sandbox lacks: {missing}", os.EX_CONFIG)
    states = {layer.name: layer.state for layer in layers}
    return register(settings.data_dir, WorkerSandbox(mode=settings.sandbox, layers=states))
