"""What passes between the store and a worker: a claim on a job, what was learnt on the way, and how it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from jobs.models import Artifact, Failure, File, JobId, JobSpec, Purpose, Summary


@dataclass(frozen=True)
class CheckpointRecord:
    """The state after ``epoch`` whole epochs, as a blob."""

    sha256: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to run a job until its lease runs out. Every later write names ``token``.

    Attributes:
        tenant: Whose job it is; for the log.
        token: Grows with each claim of the job; a write under an older one is refused.
        inputs: The files by role, as they were when the job was created.
        checkpoint: Where an earlier attempt came to; None at the first.
        attempt: Counts from 1; claims that were released do not count.
        seconds_left: Until ``deadline``, by the database's clock at the time of the claim; negative when it has passed.
    """

    job_id: JobId
    tenant: str
    token: int
    spec: JobSpec
    inputs: Mapping[Purpose, File]
    checkpoint: CheckpointRecord | None
    attempt: int
    deadline: datetime
    seconds_left: float


@dataclass(frozen=True, kw_only=True)
class InputInspection:
    """What intake found in one input. ``details`` becomes the file's ``inspection`` as it is, so it must be JSON."""

    format: str | None = None
    samples: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What intake found, by role; inputs that it did not come to are absent."""

    num_classes: int | None = None
    inputs: Mapping[Purpose, InputInspection] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Succeeded:
    """Everything was made; ``warnings`` are added to those of intake."""

    summary: Summary
    artifacts: tuple[Artifact, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failed:
    """The job cannot succeed."""

    failure: Failure


@dataclass(frozen=True)
class Cancelled:
    """The child is dead because a user asked for it."""


@dataclass(frozen=True)
class Released:
    """The worker stops for its own reasons; the job waits for another, and this attempt does not count."""


@dataclass(frozen=True)
class Crashed:
    """The job killed its child. It is tried again, or fails with ``failure`` when that happened too often."""

    failure: Failure


Outcome = Succeeded | Failed | Cancelled | Released | Crashed


@dataclass(frozen=True)
class SweepResult:
    """How many jobs one sweep has ended, by reason."""

    cancelled: int = 0
    worker_lost: int = 0
    deadline_exceeded: int = 0
