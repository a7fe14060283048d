"""A client that only polls, and notes every status that cannot be true beside those before it."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from http import HTTPStatus
from pathlib import Path

from jobs.models import TERMINAL, Job, JobId
from medic_client.client import MedicClient
from medic_client.errors import DamagedDownloadError, MedicApiError, UnreachableError

POLL_SECONDS = 0.3
REPEATABLE = "model.safetensors"
"""The artifact whose bytes depend on nothing but the job's inputs."""


class Witness:
    """Looks at every job several times a second.

    Attributes:
        jobs: As they were seen last.
        untrue: What cannot be: by job, or by None where it is of none.
        digests: What came of jobs that succeeded; of one spec there is to be one.
    """

    def __init__(self, client: MedicClient) -> None:
        self._client = client
        self.jobs: dict[JobId, Job] = {}
        self.untrue: list[tuple[JobId | None, str]] = []
        self.digests: set[str] = set()

    def has_ended(self, job_id: JobId) -> bool:
        """Whether a job was seen to have ended."""
        return job_id in self.jobs and self.jobs[job_id].status in TERMINAL

    def watch(self, over: threading.Event) -> None:
        """Look again and again."""
        while not over.wait(POLL_SECONDS):
            try:
                self.look()
            except UnreachableError:
                continue  # nobody there is no lie
            except MedicApiError as error:
                if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                    self.untrue.append((None, f"answered 500: {error.problem}"))

    def look(self) -> None:
        """Ask for all jobs once, page by page."""
        after: str | None = None
        while True:
            page = self._client.jobs(limit=100, after=after)
            for job in page.jobs:
                self._compare(job)
            after = page.next
            if after is None:
                return

    def _compare(self, job: Job) -> None:
        before = self.jobs.get(job.id)
        if before is not None and not _may_follow(before, job):
            self.untrue.append((job.id, f"{before.status} became {job.status}"))
        if job.terminal and (before is None or not before.terminal):
            self._check_artifacts(job)
        self.jobs[job.id] = job

    def _check_artifacts(self, job: Job) -> None:
        """All are there and whole where it succeeded, else none is there."""
        made = self._client.artifacts(job.id)
        if bool(made) != (job.status == "succeeded"):
            self.untrue.append((job.id, f"{job.status} with {len(made)} artifacts"))
        with tempfile.TemporaryDirectory(prefix="medic-faults-") as folder:
            for artifact in made:
                try:
                    got = self._client.download(job.id, artifact, Path(folder))
                except DamagedDownloadError as error:
                    self.untrue.append((job.id, str(error)))
                    continue
                if artifact.name == REPEATABLE:
                    self.digests.add(hashlib.sha256(got.read_bytes()).hexdigest())


def _may_follow(before: Job, after: Job) -> bool:
    if before.terminal:
        return before == after
    return before.status != "cancelling" or after.status in ("cancelling", "cancelled")
