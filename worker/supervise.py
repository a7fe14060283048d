"""Supervise one claimed job: lease, children one at a time, checkpoints, progress; and say how it ended."""

from __future__ import annotations

import hashlib
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.artifacts import NO_ROOM, ArtifactStore
from jobs.claims import (
    Cancelled,
    CheckpointRecord,
    Claim,
    Crashed,
    Failed,
    InputInspection,
    Inspection,
    Outcome,
    Released,
    Succeeded,
)
from jobs.errors import BlobMissingError, DatabaseUnavailableError, JobsError, StorageFullError
from jobs.models import Artifact, Failure, FailureClass, Phase, Progress, Purpose
from jobs.settings import Settings
from jobs.store import JobStore
from worker.children import NO_ROOM_STATUS, Ended, Watch, run_child
from worker.task import (
    CHECKPOINT_FILE,
    INTAKE_FILE,
    OUT_FOLDER,
    RESULT_FILE,
    TASK_FILE,
    Advanced,
    Checkpointed,
    Event,
    Inputs,
    Intake,
    IntakeLimits,
    Result,
    Task,
    left_by_child,
    refusal,
)

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
INTAKE_TIMEOUT = Failure(
    code="intake_timeout",
    error_class="timeout",
    message="Reading the inputs took longer than one job may take for it: send fewer or smaller images.",
)


@dataclass(frozen=True)
class Supervisor:
    """Runs claimed jobs on this machine, one at a time.

    Attributes:
        jobs: The store.
        artifacts: Where inputs, checkpoints and results lie.
        settings: Lease, limits, folders.
        stopping: Set when this worker has to end; the running job goes back to the queue.
    """

    jobs: JobStore
    artifacts: ArtifactStore
    settings: Settings
    stopping: threading.Event

    def __call__(self, claim: Claim) -> Outcome | None:
        """Run ``claim`` to an outcome, None when another worker has it by now; no fault of job or disk raises."""
        watch = Watch(
            deadline=time.monotonic() + claim.seconds_left,
            stopping=self.stopping,
            grace_seconds=self.settings.stop_grace_seconds,
        )
        try:
            with self._heartbeat(claim, watch), self._task_folder(claim) as task_dir:
                outcome = _Run(self, claim, watch, task_dir).outcome()
        except BlobMissingError as error:
            outcome = Failed(failure("input_missing", "infrastructure", str(error)))
        except StorageFullError as error:
            outcome = Crashed(failure("storage_full", "resource", str(error), retryable=True))
        except OSError as error:
            code = "storage_full" if error.errno in NO_ROOM else "storage_unavailable"
            outcome = Crashed(failure(code, "infrastructure", f"The worker's disk: {error}", retryable=True))
        return None if watch.lease_lost.is_set() else outcome

    @contextmanager
    def _heartbeat(self, claim: Claim, watch: Watch) -> Iterator[None]:
        """Renew the lease from a thread, and hear from the row whether to go on."""
        over = threading.Event()
        interval = min(self.settings.lease_seconds / 6, 1.0)  # a second at most: cancel comes the same way

        def beat() -> None:
            while not over.wait(interval):
                try:
                    state = self.jobs.beat(claim)
                except JobsError as error:
                    log.warning("lease not renewed: %s", error)
                    continue
                except Exception:
                    log.exception("lease not renewed")  # a healthy job must not lose it to what was wrong once
                    continue
                if state is None:
                    watch.lease_lost.set()
                    return
                if state == "cancelling":
                    watch.cancelled.set()

        thread = threading.Thread(target=copy_context().run, args=(beat,), name=f"lease-{claim.job_id}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    @contextmanager
    def _task_folder(self, claim: Claim) -> Iterator[Path]:
        """Make a folder for this attempt; those that killed attempts at any job left behind are removed."""
        work = self.settings.data_dir / "work"
        work.mkdir(parents=True, exist_ok=True)
        self._remove_dead_attempts(work)
        place = work / f"{claim.job_id}-{claim.token}"
        place.mkdir()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _remove_dead_attempts(self, work: Path) -> None:
        there = list(work.iterdir())  # first: whoever makes a folder now was alive before we ask
        try:
            alive = {f"{job_id}-{token}" for job_id, token in self.jobs.live_attempts()} if there else set()
        except JobsError as error:
            log.warning("folders of dead attempts are left for now: %s", error)
            return
        for left in there:
            if left.name not in alive:
                shutil.rmtree(left, ignore_errors=True)


@dataclass
class _Run:
    """One attempt at a job."""

    supervisor: Supervisor
    claim: Claim
    watch: Watch
    task_dir: Path

    def outcome(self) -> Outcome:
        self._advance("fetch")
        settings = self.supervisor.settings
        task = Task(
            job_id=self.claim.job_id,
            spec=self.claim.spec,
            inputs=Inputs.model_validate(
                {role: self._fetched(file.sha256) for role, file in self.claim.inputs.items()}
            ),
            files=dict(self.claim.inputs),
            limits=IntakeLimits(cpu_seconds=math.ceil(settings.intake_seconds)),
            checkpoint=self._checkpoint(),
            threads=settings.threads,
            device=settings.device,
            sandbox=settings.sandbox,
        )
        (self.task_dir / TASK_FILE).write_text(task.model_dump_json())
        self._advance("inspect")
        ended = run_child(
            "worker.intake", self.task_dir, watch=self.watch, stall_seconds=settings.intake_seconds, on_event=None
        )
        if bad := self._bad_end(ended, "intake"):
            return bad
        intake = left_by_child(self.task_dir / INTAKE_FILE, Intake)
        if intake is None:
            return Failed(failure("internal_error", "internal", "The intake process left no findings to read."))
        self._inspected(intake)
        if intake.problems:
            return Failed(refusal(intake.problems))
        ended = run_child(
            "worker.trainer",
            self.task_dir,
            watch=self.watch,
            stall_seconds=settings.stall_seconds,
            on_event=self._heard,
        )
        if bad := self._bad_end(ended, "trainer"):
            return bad
        result = left_by_child(self.task_dir / RESULT_FILE, Result)
        if result is None:
            return Failed(failure("internal_error", "internal", "The trainer process left no result to read."))
        return self._collected(result)

    def _heard(self, event: Event) -> None:
        """Relay the trainer's progress, and make its checkpoint safe before it goes on."""
        match event:
            case Checkpointed(epoch=epoch):
                path = self.task_dir / CHECKPOINT_FILE
                blob = self.supervisor.artifacts.put_file(path)
                record = CheckpointRecord(blob.sha256, epoch)
                kept = self._patiently(lambda: self.supervisor.jobs.save_checkpoint(self.claim, record))
                path.unlink()
                if kept:
                    self._goes_on_from(record)
                if self.watch.stopping.is_set():
                    self.watch.safe.set()
            case Advanced(phase=phase, progress=progress):
                self._advance(phase, progress)

    def _goes_on_from(self, record: CheckpointRecord) -> None:
        """Let the checkpoint before go: those of an hour may be more than the disk holds."""
        log.info("checkpoint of epoch %d kept", record.epoch)
        before = self.claim.checkpoint
        if before and before.sha256 != record.sha256:
            self.supervisor.artifacts.let_go(before.sha256)
        self.claim = replace(self.claim, checkpoint=record)

    def _advance(self, phase: Phase, progress: Progress | None = None) -> None:
        try:
            if not self.supervisor.jobs.advance(self.claim, phase=phase, progress=progress):
                log.info("progress refused")  # cancelling, or lost: the next beat says which
        except JobsError as error:
            log.warning("progress not shown: %s", error)  # it is only for display

    def _patiently(self, write: Callable[[], bool]) -> bool:
        """Write what must not be missing; wait while the database is away, as long as the job has any time left."""
        while True:
            try:
                return write()
            except DatabaseUnavailableError as error:
                if self.watch.reason_to_end(time.monotonic(), stall_seconds=math.inf):
                    raise
                log.warning("%s; trying again", error)
                time.sleep(RETRY_SECONDS)

    def _fetched(self, sha256: str) -> Path:
        """Where an input can be read, once its bytes are shown to be those that were uploaded."""
        path = self.supervisor.artifacts.path(sha256)
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise BlobMissingError(f"the stored bytes of {sha256} have changed on disk")
        return path

    def _checkpoint(self) -> Path | None:
        """Where to go on from. Without it the job can still be done: it then begins anew."""
        kept = self.claim.checkpoint
        if kept is None:
            return None
        try:
            return self._fetched(kept.sha256)
        except BlobMissingError as error:
            log.warning("the checkpoint of epoch %d is lost, all epochs are run again: %s", kept.epoch, error)
            return None

    def _inspected(self, intake: Intake) -> None:
        found: dict[Purpose, InputInspection] = {
            role: InputInspection(
                format=record.format, samples=record.samples, details=record.model_dump(mode="json", exclude_none=True)
            )
            for role, record in intake.inputs.items()
        }
        inspection = Inspection(num_classes=intake.num_classes, inputs=found, warnings=tuple(intake.warnings))
        self._patiently(lambda: self.supervisor.jobs.inspected(self.claim, inspection))

    def _bad_end(self, ended: Ended, child: str) -> Outcome | None:
        """The outcome of a child that did not end well by itself, None for one that did."""
        match ended.reason:
            case "cancelled" | "lease_lost":
                return Cancelled()  # of a lost lease nothing is written
            case "stopped":
                return Released()
            case "deadline":
                return Failed(failure("deadline_exceeded", "timeout", "The job did not end before its deadline."))
            case "stalled" if child == "intake":
                return Failed(INTAKE_TIMEOUT)
            case "stalled":
                message = f"The {child} process made no progress for too long and was ended."
                return Crashed(failure("stalled", "timeout", message, retryable=True))
            case "unintelligible":
                message = f"The {child} process reported what no {child} process reports, and was ended."
                return Failed(failure("internal_error", "internal", message))
            case "ended" if ended.returncode == 0:
                return None
        if ended.returncode == NO_ROOM_STATUS:
            message = f"The disk of the worker has no room for what the {child} process writes."
            return Crashed(failure("storage_full", "resource", message, retryable=True))
        if ended.returncode == -signal.SIGXCPU:
            return Failed(INTAKE_TIMEOUT)
        if ended.returncode < 0:
            number = -ended.returncode
            name = next((known.name for known in signal.Signals if known == number), f"signal {number}")
            message = f"The {child} process was killed by {name}."
            return Crashed(failure(f"{child}_killed", "resource", message, retryable=True))
        return Failed(failure("internal_error", "internal", f"The {child} process ended by an unexpected error."))

    def _collected(self, result: Result) -> Outcome:
        """Store what the trainer made."""
        if result.failure:
            retry = result.failure.error_class in ("resource", "infrastructure")
            return Crashed(result.failure) if retry else Failed(result.failure)
        if result.summary is None:
            return Failed(failure("internal_error", "internal", "The trainer process left no summary."))
        made = []
        for name, media_type in result.artifacts.items():
            blob = self.supervisor.artifacts.put_file(self.task_dir / OUT_FOLDER / name)
            made.append(Artifact(name=name, sha256=blob.sha256, bytes=blob.size, media_type=media_type))
        return Succeeded(summary=result.summary, artifacts=tuple(made), warnings=result.warnings)


def failure(code: str, error_class: FailureClass, message: str, *, retryable: bool = False) -> Failure:
    """Build a failure of one reason."""
    return Failure(code=code, error_class=error_class, message=message, retryable=retryable)
