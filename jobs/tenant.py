"""TenantStore: the files and jobs of one tenant, as its clients see them. It returns records, never rows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from types import MappingProxyType
from typing import Any, Literal, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    select,
    update,
)

from jobs.database import Now, reading, writing
from jobs.errors import (
    FileInUseError,
    JobExpiredError,
    JobFinishedError,
    JobNotFinishedError,
    JobsError,
    QueueFullError,
    StorageQuotaError,
    TenantQueueFullError,
    UnknownArtifactError,
    UnknownFileError,
    UnknownJobError,
    WrongPurposeError,
)
from jobs.idempotency import Reservation, release, reserve, settle
from jobs.models import (
    TERMINAL,
    Artifact,
    File,
    FileId,
    FilePage,
    Job,
    JobId,
    JobPage,
    JobSpec,
    Problem,
    Purpose,
    Status,
)
from jobs.records import to_file, to_job
from jobs.tables import artifacts, files, job_inputs, job_metadata, jobs
from jobs.transitions import ended

POINTERS: Mapping[Purpose, str] = MappingProxyType(
    {
        "model": "/model/file_id",
        "clean": "/clean_data/file_id",
        "test": "/test_data/file_id",
        "triggered": "/triggered_data/file_id",
    }
)
"""Where a job's spec names its files; each must have been uploaded for that purpose."""

_ALL: Mapping[str, str] = MappingProxyType({})
PAGE_CHARACTERS = 4 * 1024**2
"""Of the specs on a page of jobs, but for the first: a thousand class names and more are a spec of their own weight."""


@dataclass(frozen=True)
class Limits:
    """What may be stored, and how long. On PostgreSQL simultaneous requests may pass a limit together.

    Attributes:
        waiting: Jobs that wait, of all tenants.
        tenant_waiting: Jobs of one tenant that wait; None: any number.
        tenant_bytes: Of all files of one tenant together; None: any number.
        kept_milliseconds: Results of a job after its end, and files; None: for ever.
    """

    waiting: int = 1000
    tenant_waiting: int | None = None
    tenant_bytes: int | None = None
    kept_milliseconds: int | None = None


USUAL_LIMITS = Limits()


@dataclass(frozen=True)
class Upload:
    """A file whose bytes are in the artifact store, and which no record names yet."""

    sha256: str
    size: int
    purpose: Purpose
    filename: str
    id: FileId = field(default_factory=lambda: FileId(new_id("file")))


class TenantStore:
    """Files and jobs of one tenant; to it, those of others do not exist.

    Args:
        engine: From ``open_engine``.
        tenant: Whose.
        default_deadline_seconds: Of a job that states none, from its creation.
        limits: Of what it may have.
    """

    def __init__(self, engine: Engine, tenant: str, *, default_deadline_seconds: int, limits: Limits) -> None:
        self._engine, self._tenant = engine, tenant
        self._deadline_seconds, self._limits = default_deadline_seconds, limits

    # --- files ------------------------------------------------------------------------------------

    def add_file(self, upload: Upload, reservation: Reservation | None = None) -> File:
        """Record an upload, and settle the reservation of its key.

        Raises:
            StorageQuotaError: The tenant's files would be larger together than they may.
            RequestInFlightError: The reservation ran out; nothing was recorded.
        """
        with writing(self._engine) as connection:
            file = self._record(connection, upload)
            if reservation is not None:
                settle(connection, reservation, file.model_dump_json())
            return file

    def bytes_left(self) -> int | None:
        """Say how large a file may still be; None: of any size. What comes at the same time may take it first."""
        if self._limits.tenant_bytes is None:
            return None
        with reading(self._engine) as connection:
            return self._limits.tenant_bytes - self._stored_bytes(connection)

    def get_file(self, file_id: str) -> File:
        """Read a file's record.

        Raises:
            UnknownFileError: There is none.
        """
        with reading(self._engine) as connection:
            row = connection.execute(select(files).where(self._has_file(file_id))).one_or_none()
        if row is None:
            raise UnknownFileError(f"no file {file_id}")
        return to_file(row)

    def list_files(self, *, limit: int = 50, after: str | None = None) -> FilePage:
        """List files, newest first; ``after`` is the ``next`` of the page before."""
        statement = select(files).where(files.c.tenant == self._tenant).order_by(files.c.id.desc()).limit(limit + 1)
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
            found = select(files.c.id).where(self._has_file(file_id)).with_for_update()  # `create` reads it FOR SHARE
            if connection.execute(found).one_or_none() is None:
                raise UnknownFileError(f"no file {file_id}")
            if connection.scalar(select(exists().where(job_inputs.c.file_id == file_id, of_live_jobs))):
                raise FileInUseError(f"a job that has not ended needs {file_id}")
            connection.execute(delete(files).where(files.c.id == file_id))

    # --- one request, one effect ------------------------------------------------------------------

    def reserve(self, key: str, fingerprint: str) -> Reservation | str:
        """Reserve an Idempotency-Key, or return what the same request has made before, as JSON.

        Raises:
            IdempotencyKeyReusedError: The key came with another request before.
            RequestInFlightError: The same request is not answered yet.
        """
        with writing(self._engine) as connection:
            return reserve(connection, self._tenant, key, fingerprint)

    def release(self, reservation: Reservation) -> None:
        """Give an Idempotency-Key back under which nothing was made."""
        with writing(self._engine) as connection:
            release(connection, reservation)

    # --- jobs -------------------------------------------------------------------------------------

    def create(self, spec: JobSpec, reservation: Reservation | None = None, uploads: Sequence[Upload] = ()) -> Job:
        """Accept a job with the uploads that came with it, and settle the reservation: all is committed, or nothing.

        Raises:
            StorageQuotaError: The tenant's files would be larger together than they may.
            UnknownFileError: A file that the spec names does not exist; every problem with the files is listed.
            WrongPurposeError: A file was uploaded for another purpose; every one is listed.
            QueueFullError: As many jobs wait as may.
            TenantQueueFullError: As many jobs of the tenant wait as may.
            RequestInFlightError: The reservation ran out.
        """
        with writing(self._engine) as connection:
            for upload in uploads:
                self._record(connection, upload)
            inputs = self._find_inputs(connection, spec)
            self._check_room(connection)
            job = self._read_job(connection, self._insert(connection, spec, inputs))
            if reservation is not None:
                settle(connection, reservation, job.model_dump_json(by_alias=True))
            return job

    def _record(self, connection: Connection, upload: Upload) -> File:
        self._check_bytes(connection, upload.size)
        row = {"id": upload.id, "sha256": upload.sha256, "bytes": upload.size, "filename": upload.filename}
        row |= {"purpose": upload.purpose, "tenant": self._tenant}
        statement = insert(files).values(**row, created=Now()).returning(*files.c)
        return to_file(connection.execute(statement).one())

    def _check_room(self, connection: Connection) -> None:
        waiting = select(func.count()).select_from(jobs).where(jobs.c.status == "queued")
        if connection.execute(waiting).scalar_one() >= self._limits.waiting:
            raise QueueFullError(f"{self._limits.waiting} jobs wait already")
        most = self._limits.tenant_waiting
        if most and connection.execute(waiting.where(jobs.c.tenant == self._tenant)).scalar_one() >= most:
            raise TenantQueueFullError(f"{most} jobs of yours wait already, as many as may")

    def _check_bytes(self, connection: Connection, size: int) -> None:
        if self._limits.tenant_bytes is None:
            return
        left = self._limits.tenant_bytes - self._stored_bytes(connection)
        if size > left:
            raise StorageQuotaError(
                f"{size} bytes are more than the {left} that are left of your {self._limits.tenant_bytes}: delete files"
            )

    def _stored_bytes(self, connection: Connection) -> int:
        stored = select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.tenant == self._tenant)
        return int(connection.execute(stored).scalar_one())

    def _insert(self, connection: Connection, spec: JobSpec, inputs: Mapping[Purpose, File]) -> JobId:
        job_id = JobId(new_id("job"))
        created = connection.execute(select(Now())).scalar_one()
        seconds = spec.deadline_seconds or self._deadline_seconds
        row = {"id": job_id, "tenant": self._tenant, "spec": spec.model_dump(mode="json"), "status": "queued"}
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
            JobExpiredError: Retention has removed what it made.
        """
        with reading(self._engine) as connection:
            return self._read_job(connection, job_id)

    def list_jobs(
        self,
        *,
        status: Status | None = None,
        model_sha256: str | None = None,
        metadata: Mapping[str, str] = _ALL,
        limit: int = 50,
        after: str | None = None,
    ) -> JobPage:
        """List the jobs for which all that is given holds, newest first; ``after``: the ``next`` of the page before.

        What has expired is left out. A page of long specs, such as of many class names, holds fewer than ``limit``.
        """
        wanted: list[ColumnElement[bool]] = [jobs.c.tenant == self._tenant, jobs.c.expired.is_(None)]
        if status is not None:
            wanted.append(jobs.c.status == status)
        if after is not None:
            wanted.append(jobs.c.id < after)
        if model_sha256 is not None:
            wanted.append(_has(job_inputs, job_inputs.c.role == "model", job_inputs.c.sha256 == model_sha256))
        for key, value in metadata.items():
            wanted.append(_has(job_metadata, job_metadata.c.key == key, job_metadata.c.value == value))
        found = select(jobs.c.id, func.length(jobs.c.spec.cast(Text))).where(*wanted)
        chosen = found.order_by(jobs.c.id.desc()).limit(limit + 1)
        with reading(self._engine) as connection:
            known = connection.execute(chosen).all()
            ends = accumulate(length for _, length in known[:limit])
            most = max(1, sum(end <= PAGE_CHARACTERS for end in ends))
            page = [job_id for job_id, _ in known[:most]]
            wanted.append(jobs.c.id.in_(page))  # beside the others: a job may have changed meanwhile
            read = self._jobs_of(connection.execute(_with_inputs(select(jobs.c.id).where(*wanted))))
        return JobPage(jobs=read, next=page[-1] if len(known) > most else None)

    def request_cancel(self, job_id: str) -> Job:
        """Cancel a waiting job at once, and ask the worker of a running one to end it. Asking twice is asking once.

        Raises:
            UnknownJobError: There is none.
            JobFinishedError: It has already ended.
        """
        with writing(self._engine) as connection:
            status = self._lock_job(connection, job_id)
            if status in TERMINAL:
                raise JobFinishedError(f"{job_id} has already {status}")
            values = ended("cancelled") if status == "queued" else {"status": "cancelling"}
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))
            return self._read_job(connection, job_id)

    def delete(self, job_id: str) -> None:
        """Forget a job that has ended, with its artifacts.

        Raises:
            UnknownJobError: There is none.
            JobNotFinishedError: It has not ended; cancel it first.
        """
        with writing(self._engine) as connection:
            status = self._lock_job(connection, job_id)
            if status not in TERMINAL:
                raise JobNotFinishedError(f"{job_id} is {status}; cancel it first")
            connection.execute(delete(jobs).where(jobs.c.id == job_id))

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """List a job's artifacts by name; none before it has succeeded.

        Raises:
            UnknownJobError: There is no such job.
            JobExpiredError: Retention has removed them.
        """
        of_job = select(artifacts).where(artifacts.c.job_id == job_id).order_by(artifacts.c.name)
        with reading(self._engine) as connection:
            found = tuple(Artifact.model_validate(row._asdict()) for row in connection.execute(of_job))
            if connection.scalar(select(self._is_kept(job_id))):  # asked last: retention may come in between
                return found
            raise self._absent(connection, job_id)

    def artifact(self, job_id: str, name: str) -> Artifact:
        """Find one artifact of a job.

        Raises:
            UnknownJobError: There is no such job.
            JobExpiredError: Retention has removed what it made.
            UnknownArtifactError: The job has none of that name.
        """
        for artifact in self.artifacts(job_id):
            if artifact.name == name:
                return artifact
        raise UnknownArtifactError(f"{job_id} has no artifact {name}")

    def _lock_job(self, connection: Connection, job_id: str) -> Status:
        status = connection.scalar(select(jobs.c.status).where(self._has_job(job_id)).with_for_update())
        if status is None:
            raise UnknownJobError(f"no job {job_id}")
        return cast("Status", status)

    def _read_job(self, connection: Connection, job_id: str) -> Job:
        found = self._jobs_of(connection.execute(_ONE_JOB, {"job_id": job_id, "tenant": self._tenant}))
        if not found:
            raise self._absent(connection, job_id)
        return found[0]

    def _jobs_of(self, rows: Iterable[Row[Any]]) -> tuple[Job, ...]:
        kept = self._limits.kept_milliseconds
        return tuple(
            to_job(list(of_job), kept_milliseconds=kept) for _, of_job in groupby(rows, key=lambda row: row.id)
        )

    def _absent(self, connection: Connection, job_id: str) -> JobsError:
        """Say why a job is not there."""
        if connection.scalar(select(exists().where(self._has_job(job_id)))):
            return JobExpiredError(f"what {job_id} had made was kept for a time, which is over")
        return UnknownJobError(f"no job {job_id}")

    def _find_inputs(self, connection: Connection, spec: JobSpec) -> dict[Purpose, File]:
        named = _named_files(spec)
        wanted = select(files).where(files.c.tenant == self._tenant, files.c.id.in_(named.values()))
        kept = wanted.with_for_update(read=True)  # none goes before we commit
        found = {row.id: to_file(row) for row in connection.execute(kept)}
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

    def _is_kept(self, job_id: str) -> ColumnElement[bool]:
        return exists().where(self._has_job(job_id), jobs.c.expired.is_(None))

    def _has_job(self, job_id: str) -> ColumnElement[bool]:
        return and_(jobs.c.id == job_id, jobs.c.tenant == self._tenant)

    def _has_file(self, file_id: str) -> ColumnElement[bool]:
        return and_(files.c.id == file_id, files.c.tenant == self._tenant)


def new_id(kind: Literal["file", "job"]) -> str:
    """Make an id that sorts by time, to a quarter of a microsecond: a version 7 UUID (RFC 9562)."""
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    fraction = nanoseconds * 4096 // 1_000_000
    chance = int.from_bytes(os.urandom(8)) >> 2
    return f"{kind}_{milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | chance:032x}"


def _has(table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    return jobs.c.id.in_(select(table.c.job_id).where(*conditions))


def _named_files(spec: JobSpec) -> dict[Purpose, FileId]:
    named: dict[Purpose, FileId] = {"model": spec.model.file_id}
    if spec.clean_data is not None:
        named["clean"] = spec.clean_data.file_id
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


def _with_inputs(chosen: Select[tuple[str]]) -> Select[Any]:
    """Read jobs, newest first, by one statement, so that a job and its inputs are of the same moment."""
    return (
        select(jobs, *(column for column in job_inputs.c if column is not job_inputs.c.job_id))
        .join(job_inputs)
        .where(jobs.c.id.in_(chosen.correlate(None)))
        .order_by(jobs.c.id.desc())
    )


_ONE_JOB = _with_inputs(  # clients ask it all the time: to build it anew takes longer than the answer
    select(jobs.c.id).where(
        jobs.c.id == bindparam("job_id"), jobs.c.tenant == bindparam("tenant"), jobs.c.expired.is_(None)
    )
)
