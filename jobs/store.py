"""JobStore: every SQL statement, one method per transition. It returns records, never rows."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal, assert_never, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Table,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    union,
    update,
)

from jobs.claims import (
    Cancelled,
    CheckpointRecord,
    Claim,
    Crashed,
    Failed,
    Inspection,
    Outcome,
    Released,
    Succeeded,
    SweepResult,
)
from jobs.database import Now, open_engine, reading, writing
from jobs.errors import (
    FileInUseError,
    JobFinishedError,
    JobNotFinishedError,
    QueueFullError,
    UnknownArtifactError,
    UnknownFileError,
    UnknownJobError,
    WrongPurposeError,
)
from jobs.keys import KeyRecord
from jobs.models import (
    TERMINAL,
    Artifact,
    Failure,
    File,
    FileId,
    FilePage,
    Job,
    JobId,
    JobPage,
    JobSpec,
    Phase,
    Problem,
    Progress,
    Purpose,
    Status,
)
from jobs.records import to_claim, to_file, to_job
from jobs.settings import Settings
from jobs.tables import api_keys, artifacts, files, job_inputs, job_metadata, jobs

POINTERS: Mapping[Purpose, str] = MappingProxyType(
    {
        "model": "/model/file_id",
        "clean": "/clean_data/file_id",
        "test": "/test_data/file_id",
        "triggered": "/triggered_data/file_id",
    }
)
"""Where a job's spec names its files; each must have been uploaded for that purpose."""

WORKER_LOST = Failure(
    code="worker_lost",
    error_class="infrastructure",
    message="every worker that took the job went silent; see the workers' logs",
    retryable=True,
)
DEADLINE_EXCEEDED = Failure(
    code="deadline_exceeded", error_class="timeout", message="the job did not end before its deadline"
)

_ALL: Mapping[str, str] = MappingProxyType({})
_NO_LEASE = {"lease_until": None, "phase": None, "progress": None}
_QUEUED = {**_NO_LEASE, "status": "queued", "announced": None}


class JobStore:
    """The truth about files, jobs and who may work on them.

    Args:
        engine: From ``open_engine``.
        lease_seconds: A worker that was not heard of for so long has lost its job. The same in every process.
        max_lost: A job that was taken from a silent worker this often is not given to another.
        max_crashes: A job that killed its child this often fails.
        default_deadline_seconds: Of a job that states none, from its creation.
        queue_limit: How many jobs may wait; on PostgreSQL simultaneous ones may pass it together.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        lease_seconds: float = 60.0,
        max_lost: int = 5,
        max_crashes: int = 2,
        default_deadline_seconds: int = 86_400,
        queue_limit: int = 1000,
    ) -> None:
        self._engine = engine
        self._lease = round(lease_seconds * 1000)
        self._max_lost, self._max_crashes = max_lost, max_crashes
        self._deadline_seconds, self._queue_limit = default_deadline_seconds, queue_limit

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    # --- files ------------------------------------------------------------------------------------

    def add_file(self, *, sha256: str, size: int, purpose: Purpose, filename: str) -> File:
        """Record an upload whose bytes are in the artifact store already."""
        row = {"id": new_id("file"), "sha256": sha256, "bytes": size, "purpose": purpose, "filename": filename}
        with writing(self._engine) as connection:
            statement = insert(files).values(**row, created=Now()).returning(*files.c)
            return to_file(connection.execute(statement).one())

    def get_file(self, file_id: str) -> File:
        """Read a file's record.

        Raises:
            UnknownFileError: There is none.
        """
        with reading(self._engine) as connection:
            row = connection.execute(select(files).where(files.c.id == file_id)).one_or_none()
        if row is None:
            raise UnknownFileError(f"no file {file_id}")
        return to_file(row)

    def list_files(self, *, limit: int = 50, after: str | None = None) -> FilePage:
        """List files, newest first; ``after`` is the ``next`` of the page before."""
        statement = select(files).order_by(files.c.id.desc()).limit(limit + 1)
        if after is not None:
            statement = statement.where(files.c.id < after)
        with reading(self._engine) as connection:
            rows = connection.execute(statement).all()
        page = tuple(to_file(row) for row in rows[:limit])
        return FilePage(files=page, next=page[-1].id if len(rows) > limit else None)

    def delete_file(self, file_id: str) -> None:
        """Forget a file; its bytes are collected later, unless another record names them.

        Raises:
            UnknownFileError: There is none.
            FileInUseError: A job that has not ended needs it.
        """
        of_live_jobs = job_inputs.c.job_id.in_(select(jobs.c.id).where(jobs.c.status.not_in(TERMINAL)))
        with writing(self._engine) as connection:
            found = select(files.c.id).where(files.c.id == file_id).with_for_update()  # `create` reads it FOR SHARE
            if connection.execute(found).one_or_none() is None:
                raise UnknownFileError(f"no file {file_id}")
            if connection.scalar(select(exists().where(job_inputs.c.file_id == file_id, of_live_jobs))):
                raise FileInUseError(f"a job that has not ended needs {file_id}")
            connection.execute(delete(files).where(files.c.id == file_id))

    # --- jobs, as clients see them ----------------------------------------------------------------

    def create(self, spec: JobSpec) -> Job:
        """Accept a job; it is committed on return.

        Raises:
            UnknownFileError: A file that the spec names does not exist; every problem with the files is listed.
            WrongPurposeError: A file was uploaded for another purpose; every one is listed.
            QueueFullError: As many jobs wait as may.
        """
        with writing(self._engine) as connection:
            inputs = _find_inputs(connection, spec)
            self._check_room(connection)
            job_id = self._insert(connection, spec, inputs)
            return _read_job(connection, job_id)

    def _check_room(self, connection: Connection) -> None:
        waiting = select(func.count()).select_from(jobs).where(jobs.c.status == "queued")
        if connection.execute(waiting).scalar_one() >= self._queue_limit:
            raise QueueFullError(f"{self._queue_limit} jobs wait already")

    def _insert(self, connection: Connection, spec: JobSpec, inputs: Mapping[Purpose, File]) -> JobId:
        job_id = JobId(new_id("job"))
        created = connection.execute(select(Now())).scalar_one()
        seconds = spec.deadline_seconds or self._deadline_seconds
        row = {"id": job_id, "spec": spec.model_dump(mode="json"), "status": "queued"}
        connection.execute(insert(jobs).values(**row, created=created, deadline=created + seconds * 1000))
        named = [
            {"job_id": job_id, "role": role, "file_id": file.id, "sha256": file.sha256, "bytes": file.bytes}
            for role, file in inputs.items()
        ]
        connection.execute(insert(job_inputs), named)
        if spec.metadata:
            pairs = [{"job_id": job_id, "key": key, "value": value} for key, value in spec.metadata.items()]
            connection.execute(insert(job_metadata), pairs)
        return job_id

    def get(self, job_id: str) -> Job:
        """Read a job.

        Raises:
            UnknownJobError: There is none.
        """
        with reading(self._engine) as connection:
            return _read_job(connection, job_id)

    def list_jobs(
        self,
        *,
        status: Status | None = None,
        model_sha256: str | None = None,
        metadata: Mapping[str, str] = _ALL,
        limit: int = 50,
        after: str | None = None,
    ) -> JobPage:
        """List the jobs for which all that is given holds, newest first; ``after``: the ``next`` of the page before."""
        wanted: list[ColumnElement[bool]] = []
        if status is not None:
            wanted.append(jobs.c.status == status)
        if after is not None:
            wanted.append(jobs.c.id < after)
        if model_sha256 is not None:
            wanted.append(_has(job_inputs, job_inputs.c.role == "model", job_inputs.c.sha256 == model_sha256))
        for key, value in metadata.items():
            wanted.append(_has(job_metadata, job_metadata.c.key == key, job_metadata.c.value == value))
        chosen = select(jobs.c.id).where(*wanted).order_by(jobs.c.id.desc()).limit(limit + 1)
        with reading(self._engine) as connection:
            found = _read_jobs(connection, chosen)
        return JobPage(jobs=found[:limit], next=found[limit - 1].id if len(found) > limit else None)

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once, and ask the worker of a running one to end it. Asking twice is asking once.

        Raises:
            UnknownJobError: There is none.
            JobFinishedError: It has already ended.
        """
        with writing(self._engine) as connection:
            status = _lock_job(connection, job_id)
            if status in TERMINAL:
                raise JobFinishedError(f"{job_id} has already {status}")
            values = _ended("cancelled") if status == "queued" else {"status": "cancelling"}
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
            return _read_job(connection, job_id)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, with its artifacts.

        Raises:
            UnknownJobError: There is none.
            JobNotFinishedError: It has not ended; cancel it first.
        """
        with writing(self._engine) as connection:
            status = _lock_job(connection, job_id)
            if status not in TERMINAL:
                raise JobNotFinishedError(f"{job_id} is {status}; cancel it first")
            connection.execute(delete(jobs).where(jobs.c.id == job_id))

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """List a job's artifacts by name; none before it has succeeded.

        Raises:
            UnknownJobError: There is no such job.
        """
        of_job = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.name)
        with reading(self._engine) as connection:
            if connection.execute(select(jobs.c.id).where(jobs.c.id == job_id)).one_or_none() is None:
                raise UnknownJobError(f"no job {job_id}")
            return tuple(Artifact.model_validate(row._asdict()) for row in connection.execute(of_job))

    def artifact(self, job_id: str, name: str) -> Artifact:
        """Find one artifact of a job.

        Raises:
            UnknownJobError: There is no such job.
            UnknownArtifactError: The job has none of that name.
        """
        for artifact in self.artifacts(job_id):
            if artifact.name == name:
                return artifact
        raise UnknownArtifactError(f"{job_id} has no artifact {name}")

    # --- jobs, as workers see them ----------------------------------------------------------------

    def claimable(self, limit: int = 10) -> tuple[JobId, ...]:
        """List jobs that a worker may claim, oldest first: those that wait and those whose worker went silent."""
        waiting = select(jobs.c.id).where(self._is_claimable()).order_by(jobs.c.created, jobs.c.id).limit(limit)
        with reading(self._engine) as connection:
            return tuple(connection.execute(waiting).scalars())

    def claim(self, job_id: str) -> Claim | None:
        """Take a job, under a new token and with a lease. Of several who try, one gets it; None for the others."""
        statement = (
            update(jobs)
            .where(jobs.c.id == job_id, self._is_claimable())
            .values(
                status="running",
                token=jobs.c.token + 1,
                lost=jobs.c.lost + case((jobs.c.status == "running", 1), else_=0),
                attempt=jobs.c.attempt + 1,
                started=func.coalesce(jobs.c.started, Now()),
                lease_until=Now() + self._lease,
                phase=None,
                progress=None,
            )
            .returning(*jobs.c, Now().label("now"))
        )
        with writing(self._engine) as connection:
            row = connection.execute(statement).one_or_none()
            inputs = {} if row is None else _read_inputs(connection, job_id)
        # Read it only now: a spec that this version cannot read must still count as lost, or it would come up for ever.
        return None if row is None else to_claim(row, inputs)

    def beat(self, claim: Claim) -> Literal["running", "cancelling"] | None:
        """Renew the lease. ``cancelling``: a user asks for the end; None: the job is no longer ours."""
        ours = _is_ours(claim, "running", "cancelling")
        statement = update(jobs).where(ours).values(lease_until=Now() + self._lease).returning(jobs.c.status)
        with writing(self._engine) as connection:
            return cast("Literal['running', 'cancelling'] | None", connection.execute(statement).scalar_one_or_none())

    def advance(self, claim: Claim, *, phase: Phase, progress: Progress | None = None) -> bool:
        """Show how far a running job has come. False when it is no longer ours or is to be cancelled."""
        shown = progress.model_dump(mode="json") if progress is not None else None
        with writing(self._engine) as connection:
            return _write(connection, claim, {"phase": phase, "progress": shown})

    def inspected(self, claim: Claim, inspection: Inspection) -> bool:
        """Keep what intake found with the job and its files. False when it is no longer ours or is to be cancelled."""
        found = {"num_classes": inspection.num_classes, "warnings": list(inspection.warnings)}
        with writing(self._engine) as connection:
            if not _write(connection, claim, found):
                return False
            for role, seen in inspection.inputs.items():
                of_role = (job_inputs.c.job_id == claim.job_id) & (job_inputs.c.role == role)
                values = {"format": seen.format, "samples": seen.samples}
                connection.execute(update(job_inputs).where(of_role).values(values))
                of_file = files.c.id == claim.inputs[role].id
                connection.execute(update(files).where(of_file).values(inspection=dict(seen.details)))
            return True

    def save_checkpoint(self, claim: Claim, checkpoint: CheckpointRecord) -> bool:
        """Name the blob that a later attempt goes on from. False when it is no longer ours or is to be cancelled."""
        values = {"checkpoint_sha256": checkpoint.sha256, "checkpoint_epoch": checkpoint.epoch}
        with writing(self._engine) as connection:
            return _write(connection, claim, values)

    def finish(self, claim: Claim, outcome: Outcome) -> bool:
        """Let go of a job, with all that its outcome brings, in one transaction.

        A job that is to be cancelled becomes cancelled whatever the outcome: cancel wins the race.

        Returns:
            Whether the claim was still good. When it was not, nothing was changed.
        """
        ours = select(jobs).where(_is_ours(claim, "running", "cancelling")).with_for_update()
        with writing(self._engine) as connection:
            row = connection.execute(ours).one_or_none()
            if row is None:
                return False
            if row.status == "cancelling":
                outcome = Cancelled()
            values = self._after(outcome, row)
            connection.execute(update(jobs).where(jobs.c.id == claim.job_id).values(values))
            if isinstance(outcome, Succeeded) and outcome.artifacts:
                named = [{"job_id": claim.job_id, **artifact.model_dump()} for artifact in outcome.artifacts]
                connection.execute(insert(artifacts), named)
            return True

    def _after(self, outcome: Outcome, row: Row[Any]) -> Mapping[str, Any]:
        match outcome:
            case Succeeded(summary=summary, warnings=warnings):
                values = {"summary": summary.model_dump(mode="json"), "warnings": [*row.warnings, *warnings]}
                return {**_ended("succeeded"), **values}
            case Failed(failure):
                return _failed(failure)
            case Cancelled():
                return _ended("cancelled")
            case Released():
                return {**_QUEUED, "attempt": row.attempt - 1}
            case Crashed(failure):
                crashes = row.crashes + 1
                after = _failed(failure) if crashes >= self._max_crashes else _QUEUED
                return {**after, "crashes": crashes}
            case _:
                assert_never(outcome)

    # --- what the sweeper does --------------------------------------------------------------------

    def sweep(self) -> SweepResult:
        """End the jobs that no worker will: cancelled with a silent worker, past their deadline, or lost too often."""
        silent = (jobs.c.status == "running") & self._is_expired()
        overdue = or_(jobs.c.status == "queued", silent) & (jobs.c.deadline < Now())
        return SweepResult(
            cancelled=self._end((jobs.c.status == "cancelling") & self._is_expired(), _ended("cancelled")),
            deadline_exceeded=self._end(overdue, _failed(DEADLINE_EXCEEDED)),
            worker_lost=self._end(silent & (jobs.c.lost >= self._max_lost), _failed(WORKER_LOST)),
        )

    def _end(self, which: ColumnElement[bool], values: Mapping[str, Any]) -> int:
        free = (
            select(jobs.c.id).where(which).correlate(None).with_for_update(skip_locked=True)
        )  # two sweepers must not wait in a ring
        with writing(self._engine) as connection:
            return connection.execute(update(jobs).where(jobs.c.id.in_(free)).values(values)).rowcount

    def unannounced(self, *, older_than_seconds: float) -> tuple[JobId, ...]:
        """List claimable jobs, oldest first, that no message was sent for lately: since they were queued or before."""
        announced = func.coalesce(jobs.c.announced, jobs.c.created)
        lately = announced.between(Now() - round(older_than_seconds * 1000), Now())
        waiting = select(jobs.c.id).where(self._is_claimable(), ~lately).order_by(jobs.c.created, jobs.c.id)
        with reading(self._engine) as connection:
            return tuple(connection.execute(waiting).scalars())

    def announced(self, job_id: str) -> None:
        """Remember that a message was sent for a job just now."""
        with writing(self._engine) as connection:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(announced=Now()))

    def live_digests(self) -> set[str]:
        """List every digest that some record names: files, artifacts, and what jobs that have not ended need."""
        unfinished = select(jobs.c.id).where(jobs.c.status.not_in(TERMINAL))
        named = union(
            select(files.c.sha256),
            select(artifacts.c.sha256),
            select(job_inputs.c.sha256).where(job_inputs.c.job_id.in_(unfinished)),
            select(jobs.c.checkpoint_sha256).where(jobs.c.checkpoint_sha256.is_not(None)),
        )
        with reading(self._engine) as connection:
            return set(connection.execute(named).scalars())

    # --- the API key ------------------------------------------------------------------------------

    def key_digest(self) -> KeyRecord | None:
        """Read what is kept of the one API key; None before there is one."""
        with reading(self._engine) as connection:
            row = connection.execute(select(api_keys)).one_or_none()
        return None if row is None else KeyRecord(row.id, row.sha256)

    def set_key(self, record: KeyRecord) -> None:
        """Make this the one API key; the one before is no longer valid."""
        with writing(self._engine) as connection:
            connection.execute(delete(api_keys))
            connection.execute(insert(api_keys).values(id=record.id, sha256=record.sha256))

    # --- who may have a job -----------------------------------------------------------------------

    def _is_expired(self) -> ColumnElement[bool]:
        ahead_of_the_clock = jobs.c.lease_until > Now() + self._lease  # the clock was set back: no lease lives for ever
        return or_(jobs.c.lease_until < Now(), ahead_of_the_clock)

    def _is_claimable(self) -> ColumnElement[bool]:
        lost = and_(jobs.c.status == "running", jobs.c.lost < self._max_lost, self._is_expired())
        return or_(jobs.c.status == "queued", lost)


def open_store(settings: Settings) -> JobStore:
    """Open the store that every process of one service shares.

    Raises:
        DatabaseUnavailableError: The database did not answer in time.
    """
    return JobStore(
        open_engine(settings),
        lease_seconds=settings.lease_seconds,
        default_deadline_seconds=settings.deadline_seconds,
        queue_limit=settings.queue_limit,
    )


def new_id(kind: Literal["file", "job"]) -> str:
    """Make an id that sorts by time, to a quarter of a microsecond: a version 7 UUID (RFC 9562)."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    chance = int.from_bytes(os.urandom(8)) >> 2
    return f"{kind}_{milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | chance:032x}"


# --- conditions and values ------------------------------------------------------------------------


def _is_ours(claim: Claim, *statuses: Status) -> ColumnElement[bool]:
    return and_(jobs.c.id == claim.job_id, jobs.c.token == claim.token, jobs.c.status.in_(statuses))


def _has(table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return jobs.c.id.in_(select(table.c.job_id).where(*conditions))


def _ended(status: Status) -> dict[str, Any]:
    no_checkpoint = {"checkpoint_sha256": None, "checkpoint_epoch": None}  # its blob may be collected from now on
    return {**_NO_LEASE, **no_checkpoint, "status": status, "finished": Now()}


def _failed(failure: Failure) -> dict[str, Any]:
    return {**_ended("failed"), "error": failure.model_dump(mode="json")}


# --- statements that several transitions share ----------------------------------------------------


def _write(connection: Connection, claim: Claim, values: Mapping[str, Any]) -> bool:
    statement = update(jobs).where(_is_ours(claim, "running")).values(values)
    return connection.execute(statement).rowcount == 1


def _lock_job(connection: Connection, job_id: str) -> Status:
    status = connection.scalar(select(jobs.c.status).where(jobs.c.id == job_id).with_for_update())
    if status is None:
        raise UnknownJobError(f"no job {job_id}")
    return cast("Status", status)


def _find_inputs(connection: Connection, spec: JobSpec) -> dict[Purpose, File]:
    named = _named_files(spec)
    wanted = (
        select(files).where(files.c.id.in_(named.values())).with_for_update(read=True)
    )  # none goes before we commit
    found = {row.id: to_file(row) for row in connection.execute(wanted)}
    unknown = [_unknown(role, file_id) for role, file_id in named.items() if file_id not in found]
    misused = [
        _misused(role, found[file_id])
        for role, file_id in named.items()
        if file_id in found and found[file_id].purpose != role
    ]
    if unknown:
        raise UnknownFileError("the spec names files that do not exist", *unknown, *misused)
    if misused:
        raise WrongPurposeError("the spec names files that were uploaded for another purpose", *misused)
    return {role: found[file_id] for role, file_id in named.items()}


def _named_files(spec: JobSpec) -> dict[Purpose, FileId]:
    named: dict[Purpose, FileId] = {"model": spec.model.file_id, "clean": spec.clean_data.file_id}
    if spec.test_data is not None:
        named["test"] = spec.test_data.file_id
    if spec.triggered_data is not None:
        named["triggered"] = spec.triggered_data.file_id
    return named


def _unknown(role: Purpose, file_id: FileId) -> Problem:
    return Problem(code=UnknownFileError.code, detail=f"no file {file_id}", pointer=POINTERS[role])


def _misused(role: Purpose, file: File) -> Problem:
    detail = f"{file.id} was uploaded with purpose {file.purpose}; upload it with purpose {role}"
    return Problem(code=WrongPurposeError.code, detail=detail, pointer=POINTERS[role])


def _read_job(connection: Connection, job_id: str) -> Job:
    found = _read_jobs(connection, select(jobs.c.id).where(jobs.c.id == job_id))
    if not found:
        raise UnknownJobError(f"no job {job_id}")
    return found[0]


def _read_jobs(connection: Connection, chosen: Select[tuple[str]]) -> tuple[Job, ...]:
    statement = (  # one statement, so that a job and its inputs are of the same moment
        select(jobs, *(column for column in job_inputs.c if column is not job_inputs.c.job_id))
        .join(job_inputs)
        .where(jobs.c.id.in_(chosen.correlate(None)))
        .order_by(jobs.c.id.desc())
    )
    rows = connection.execute(statement)
    return tuple(to_job(list(of_job)) for _, of_job in groupby(rows, key=lambda row: row.id))


def _read_inputs(connection: Connection, job_id: str) -> dict[Purpose, File]:
    statement = (
        select(job_inputs.c.role, files)
        .join(files, files.c.id == job_inputs.c.file_id)
        .where(job_inputs.c.job_id == job_id)
    )
    return {row.role: to_file(row) for row in connection.execute(statement)}
