"""What can go wrong between a client and the service. One root."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jobs.models import Job, JobId


class MedicClientError(Exception):
    """Root of all expected failures of the client."""


class MedicApiError(MedicClientError):
    """The service refused.

    Attributes:
        status: The HTTP status.
        problem: The problem document (RFC 9457) that came with it; what is no such document is put into one.
        retry_after_seconds: When the service asked to come back, None when it did not ask.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after_seconds: float | None = None) -> None:
        said = problem.get("detail") or problem.get("title")
        reasons = [f"{error.get('pointer') or '-'}: {error.get('detail')}" for error in problem.get("errors") or ()]
        super().__init__("\n  ".join([f"{problem.get('code') or 'refused'} ({status}): {said}", *reasons]))
        self.status = status
        self.problem = problem
        self.retry_after_seconds = retry_after_seconds


class MalformedKeyError(MedicClientError):
    """The API key has characters that no key has. The message does not show it."""

    def __init__(self) -> None:
        super().__init__("the API key (MEDIC_API_KEY) has characters that no key has; it reads mdk_<id>_<secret>")


class MalformedUrlError(MedicClientError):
    """The address of the service is none."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"{url!r} (MEDIC_URL) is no address of a service, such as https://medic.example: {reason}")


class UnreadableAnswerError(MedicClientError):
    """The answer is no JSON, or not that of this service."""

    def __init__(self, path: str, status: int, kind: str) -> None:
        super().__init__(
            f"the answer to {path} is not one of this service ({status}, {kind}): check MEDIC_URL, and that client and "
            "service are of one version"
        )


class UnreachableError(MedicClientError):
    """No answer from the service."""


class WaitTimedOutError(MedicClientError):
    """The job had not ended when patience was over; it goes on. ``job`` is what was last seen of it."""

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(f"{job.id} is still {job.status} after {seconds:g} s")
        self.job = job


class DamagedDownloadError(MedicClientError):
    """What came is not what the service has on record; nothing was kept."""


class ServiceFailedError(MedicClientError):
    """The service that the command started for itself does not run."""


class JobFailedError(MedicClientError):
    """The job ended without success. ``job`` is how it ended."""

    def __init__(self, job: Job) -> None:
        reason = f": {job.error.message} ({job.error.code})" if job.error else ""
        problems = (
            [f"{problem.pointer or '-'}: {problem.detail}" for problem in job.error.problems] if job.error else []
        )
        super().__init__("\n  ".join([f"{job.id} {job.status}{reason}", *problems]))
        self.job = job


class UnknownArtifactError(MedicClientError):
    """The job has no artifact of such a name."""

    def __init__(self, job_id: JobId, names: Sequence[str]) -> None:
        super().__init__(f"{job_id} has no artifact named {', '.join(names)}")


class DemoFailedError(MedicClientError):
    """The demo did not show what it promises."""
