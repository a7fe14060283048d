"""What the job's house refuses. One root; ``api/errors.py`` maps each to an HTTP status."""

from __future__ import annotations

from typing import ClassVar

from jobs.models import Problem


class JobsError(Exception):
    """Root of all expected failures of the store, the artifacts and the queue."""

    code: ClassVar[str] = "jobs_error"

    def __init__(self, message: str, *problems: Problem) -> None:
        super().__init__(message)
        self.problems = problems


class UnknownJobError(JobsError):
    """No job of that id."""

    code = "unknown_job"


class JobExpiredError(JobsError):
    """Retention has removed what the job had made; nothing but its record is left."""

    code = "job_expired"


class UnknownFileError(JobsError):
    """No file of that id; where a spec names it, ``problems`` points to it."""

    code = "unknown_file"


class WrongPurposeError(JobsError):
    """A spec names a file that was uploaded for another purpose."""

    code = "wrong_purpose"


class FileInUseError(JobsError):
    """A job that has not ended needs the file."""

    code = "file_in_use"


class JobNotFinishedError(JobsError):
    """Only a job that has ended can be deleted, or has artifacts."""

    code = "job_not_finished"


class JobFinishedError(JobsError):
    """The job has already ended; there is nothing to cancel."""

    code = "job_finished"


class UnknownArtifactError(JobsError):
    """The job has no artifact of that name."""

    code = "unknown_artifact"


class BlobMissingError(JobsError):
    """A record names bytes that the artifact store no longer has."""

    code = "blob_missing"


class BackupError(JobsError):
    """No backup was made; nothing is left of the attempt."""

    code = "backup_failed"


class ArtifactTooLargeError(JobsError):
    """More bytes than the limit allows."""

    code = "too_large"


class StorageFullError(JobsError):
    """No room left on the disk; nothing was kept."""

    code = "storage_full"


class DigestMismatchError(JobsError):
    """The bytes received are not those that the sender announced."""

    code = "digest_mismatch"


class QueueUnavailableError(JobsError):
    """The broker took no message; the sweeper will announce the job again."""

    code = "queue_unavailable"


class DatabaseUnavailableError(JobsError):
    """The database did not answer in time; nothing was changed."""

    code = "database_unavailable"


class SchemaTooNewError(JobsError):
    """A later version of this program made the database; nothing was changed."""

    code = "schema_too_new"


class QueueFullError(JobsError):
    """As many jobs wait as the service accepts; nothing was changed."""

    code = "queue_full"


class TenantQueueFullError(JobsError):
    """As many jobs of the tenant wait as may; nothing was changed."""

    code = "tenant_queue_full"


class StorageQuotaError(JobsError):
    """The tenant's files would be larger together than they may; nothing was recorded."""

    code = "storage_quota_exceeded"


class RequestInFlightError(JobsError):
    """Another request under the same Idempotency-Key is not answered yet; nothing was changed."""

    code = "request_in_flight"


class IdempotencyKeyReusedError(JobsError):
    """The Idempotency-Key came with another request before; nothing was changed."""

    code = "idempotency_key_reused"


class InvalidKeyError(JobsError):
    """The text does not look like an API key."""

    code = "invalid_key"
