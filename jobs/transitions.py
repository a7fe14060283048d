"""What a transition of a job writes into its row."""

from __future__ import annotations

from typing import Any

from jobs.database import Now
from jobs.models import Failure, Status

WORKER_LOST = Failure(
    code="worker_lost",
    error_class="infrastructure",
    message="every worker that took the job went silent; see the workers' logs",
    retryable=True,
)
DEADLINE_EXCEEDED = Failure(
    code="deadline_exceeded", error_class="timeout", message="the job did not end before its deadline"
)

NO_LEASE = {"lease_until": None, "phase": None, "progress": None}
QUEUED = {**NO_LEASE, "status": "queued", "announced": None}


def ended(status: Status) -> dict[str, Any]:
    """Say what the row of a job holds that has ended so."""
    no_checkpoint = {"checkpoint_sha256": None, "checkpoint_epoch": None}  # its blob may be collected from now on
    return {**NO_LEASE, **no_checkpoint, "status": status, "finished": Now()}


def failed(failure: Failure) -> dict[str, Any]:
    """Say what the row of a job holds that has failed."""
    return {**ended("failed"), "error": failure.model_dump(mode="json")}
