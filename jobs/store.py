"""JobStore: what workers, sweepers and operators do to records, one method per transition; ``TenantStore``: clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, assert_never, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    and_,
    bindparam,
    case,
    delete,
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
from jobs.idempotency import forget
from jobs.keys import KeyRecord
from jobs.models import TERMINAL, File, JobId, Phase, Progress, Purpose, Status
from jobs.records import to_claim, to_file, to_key
from jobs.settings import Settings
from jobs.tables import api_keys, artifacts, files, job_inputs, jobs
from jobs.tenant import USUAL_LIMITS, Limits, TenantStore
from jobs.transitions import DEADLINE_EXCEEDED, QUEUED, WORKER_LOST, ended, failed

_VALID_KEY = select(api_keys).where(  # every request asks it: to build it anew takes longer than the answer
    api_keys.c.id == bindparam("key_id"),
    api_keys.c.revoked.is_(None),
    or_(api_keys.c.expires.is_(None), api_keys.c.expires > Now()),
)

DAY_MILLISECONDS = 24 * 3600 * 1000


class JobStore:
    """The truth about jobs and who may work on them, about files and about API keys.

    Args:
        engine: From ``open_engine``.
        lease_seconds: A worker that was not heard of for so long has lost its job. The same in every process.
        max_lost: A job that was taken from a silent worker this often is not given to another.
        max_crashes: A job that killed its child this often fails.
        default_deadline_seconds: Of a job that states none, from its creation.
        limits: Of what a tenant may have.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        lease_seconds: float = 60.0,
        max_lost: int = 5,
        max_crashes: int = 2,
        default_deadline_seconds: int = 86_400,
        limits: Limits = USUAL_LIMITS,
    ) -> None:
        self._engine = engine
        self._lease = round(lease_seconds * 1000)
        self._max_lost, self._max_crashes = max_lost, max_crashes
        self._deadline_seconds, self._limits = default_deadline_seconds, limits

    def of(self, tenant: str) -> TenantStore:
        """Return the files and jobs of a tenant, for its clients."""
        return TenantStore(
            self._engine,
            tenant,
            default_deadline_seconds=self._deadline_seconds,
            limits=self._limits,
        )

    def check(self) -> None:
        """Ask the database whether it answers.

        Raises:
            DatabaseUnavailableError: It does not.
        """
        with reading(self._engine) as connection:
            connection.execute(select(Now()))

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

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

    def live_attempts(self) -> set[tuple[JobId, int]]:
        """List the jobs that are with a worker, with the tokens of their claims."""
        statement = select(jobs.c.id, jobs.c.token).where(jobs.c.status.in_(("running", "cancelling")))
        with reading(self._engine) as connection:
            return {(row.id, row.token) for row in connection.execute(statement)}

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

    def finish(self, claim: Claim, outcome: Outcome) -> Outcome | None:
        """Let go of a job, with all that its outcome brings, in one transaction.

        A job that is to be cancelled becomes cancelled whatever the outcome: cancel wins the race.

        Returns:
            The outcome that was written; None where the claim was no longer good, and nothing was changed.
        """
        ours = select(jobs).where(_is_ours(claim, "running", "cancelling")).with_for_update()
        with writing(self._engine) as connection:
            row = connection.execute(ours).one_or_none()
            if row is None:
                return None
            if row.status == "cancelling":
                outcome = Cancelled()
            values = self._after(outcome, row)
            connection.execute(update(jobs).where(jobs.c.id == claim.job_id).values(values))
            if isinstance(outcome, Succeeded) and outcome.artifacts:
                named = [{"job_id": claim.job_id, **artifact.model_dump()} for artifact in outcome.artifacts]
                connection.execute(insert(artifacts), named)
            return outcome

    def _after(self, outcome: Outcome, row: Row[Any]) -> Mapping[str, Any]:
        match outcome:
            case Succeeded(summary=summary, warnings=warnings):
                values = {"summary": summary.model_dump(mode="json"), "warnings": [*row.warnings, *warnings]}
                return {**ended("succeeded"), **values}
            case Failed(failure):
                return failed(failure)
            case Cancelled():
                return ended("cancelled")
            case Released():
                return {**QUEUED, "attempt": row.attempt - 1}
            case Crashed(failure):
                crashes = row.crashes + 1
                after = failed(failure) if crashes >= self._max_crashes else QUEUED
                return {**after, "crashes": crashes}
            case _:
                assert_never(outcome)

    # --- what the sweeper does --------------------------------------------------------------------

    def sweep(self) -> SweepResult:
        """End the jobs that no worker will: cancelled with a silent worker, past their deadline, or lost too often.

        What was made under an Idempotency-Key a day ago is forgotten.
        """
        with writing(self._engine) as connection:
            forget(connection)
        silent = (jobs.c.status == "running") & self._is_expired()
        overdue = or_(jobs.c.status == "queued", silent) & (jobs.c.deadline < Now())
        return SweepResult(
            cancelled=self._end((jobs.c.status == "cancelling") & self._is_expired(), ended("cancelled")),
            deadline_exceeded=self._end(overdue, failed(DEADLINE_EXCEEDED)),
            worker_lost=self._end(silent & (jobs.c.lost >= self._max_lost), failed(WORKER_LOST)),
        )

    def _end(self, which: ColumnElement[bool], values: Mapping[str, Any]) -> int:
        free = (
            select(jobs.c.id).where(which).correlate(None).with_for_update(skip_locked=True)
        )  # two sweepers must not wait in a ring
        with writing(self._engine) as connection:
            return connection.execute(update(jobs).where(jobs.c.id.in_(free)).values(values)).rowcount

    def expire(self, *, most: int = 100) -> tuple[int, int]:
        """Remove some of what retention keeps no longer; return how many jobs and files that were.

        Of a job that ended so long ago its record is left, without artifacts. A file goes when it is as old and no job
        names it that is kept: one that waits or runs is.
        """
        kept = self._limits.kept_milliseconds
        if kept is None:
            return 0, 0
        with writing(self._engine) as connection:
            return _expire_jobs(connection, kept, most), _expire_files(connection, kept, most)

    def unannounced(self, *, older_than_seconds: float) -> tuple[JobId, ...]:
        """List claimable jobs, oldest first, that no message was sent for lately: since they were queued or before."""
        announced = func.coalesce(jobs.c.announced, jobs.c.created)
        lately = announced.between(Now() - round(older_than_seconds * 1000), Now())
        waiting = select(jobs.c.id).where(self._is_claimable(), ~lately).order_by(jobs.c.created, jobs.c.id)
        with reading(self._engine) as connection:
            return tuple(connection.execute(waiting).scalars())

    def count_claimable(self) -> int:
        """Count the jobs that a worker may claim."""
        with reading(self._engine) as connection:
            return connection.execute(select(func.count()).select_from(jobs).where(self._is_claimable())).scalar_one()

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

    # --- API keys ---------------------------------------------------------------------------------

    def add_key(self, record: KeyRecord, *, valid_seconds: int | None = None) -> None:
        """Let the holder of a key in, for good or for so long."""
        expires = None if valid_seconds is None else Now() + valid_seconds * 1000
        row = {"id": record.id, "sha256": record.sha256, "tenant": record.tenant, "scopes": list(record.scopes)}
        with writing(self._engine) as connection:
            connection.execute(insert(api_keys).values(**row, created=Now(), expires=expires))

    def find_key(self, key_id: str) -> KeyRecord | None:
        """Read what is kept of a key; None where there is none, or it has expired or was revoked."""
        with reading(self._engine) as connection:
            row = connection.execute(_VALID_KEY, {"key_id": key_id}).one_or_none()
        return None if row is None else to_key(row)

    def list_keys(self) -> tuple[KeyRecord, ...]:
        """List all keys, also those that have expired or were revoked, the oldest first."""
        with reading(self._engine) as connection:
            rows = connection.execute(select(api_keys).order_by(api_keys.c.created, api_keys.c.id)).all()
        return tuple(to_key(row) for row in rows)

    def revoke_key(self, key_id: str) -> bool:
        """Let the holder of a key in no more. False where there is no such key."""
        revoked = func.coalesce(api_keys.c.revoked, Now())
        statement = update(api_keys).where(api_keys.c.id == key_id).values(revoked=revoked)
        with writing(self._engine) as connection:
            return connection.execute(statement).rowcount == 1

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
        limits=Limits(
            settings.queue_limit,
            settings.tenant_queue_limit,
            settings.tenant_bytes_limit,
            None if settings.retention_days is None else round(settings.retention_days * DAY_MILLISECONDS),
        ),
    )


def _expire_jobs(connection: Connection, kept: int, most: int) -> int:
    over = select(jobs.c.id).where(jobs.c.expired.is_(None), jobs.c.finished < Now() - kept)
    chosen = connection.scalars(over.order_by(jobs.c.finished).limit(most).with_for_update(skip_locked=True)).all()
    connection.execute(update(jobs).where(jobs.c.id.in_(chosen)).values(expired=Now()))
    connection.execute(delete(artifacts).where(artifacts.c.job_id.in_(chosen)))
    return len(chosen)


def _expire_files(connection: Connection, kept: int, most: int) -> int:
    named = select(job_inputs.c.file_id).join(jobs).where(jobs.c.expired.is_(None))
    over = select(files.c.id).where(files.c.created < Now() - kept, files.c.id.not_in(named))
    chosen = connection.scalars(over.order_by(files.c.created).limit(most).with_for_update(skip_locked=True)).all()
    unnamed = files.c.id.not_in(named)  # asked again: a job may have come before we had the lock that `create` shares
    return connection.execute(delete(files).where(files.c.id.in_(chosen), unnamed)).rowcount


def _is_ours(claim: Claim, *statuses: Status) -> ColumnElement[bool]:
    return and_(jobs.c.id == claim.job_id, jobs.c.token == claim.token, jobs.c.status.in_(statuses))


def _write(connection: Connection, claim: Claim, values: Mapping[str, Any]) -> bool:
    statement = update(jobs).where(_is_ours(claim, "running")).values(values)
    return connection.execute(statement).rowcount == 1


def _read_inputs(connection: Connection, job_id: str) -> dict[Purpose, File]:
    statement = (
        select(job_inputs.c.role, files)
        .join(files, files.c.id == job_inputs.c.file_id)
        .where(job_inputs.c.job_id == job_id)
    )
    return {row.role: to_file(row) for row in connection.execute(statement)}
