"""From rows to records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row

from jobs.claims import CheckpointRecord, Claim
from jobs.keys import KeyRecord
from jobs.models import (
    Failure,
    File,
    InputRecord,
    Job,
    JobId,
    JobSpec,
    ModelRecord,
    Progress,
    Purpose,
    Summary,
    Timestamps,
)


def to_file(row: Row[Any]) -> File:
    """Read a row of ``files``."""
    return File.model_validate({**row._asdict(), "created": _moment(row.created)})


def to_claim(row: Row[Any], inputs: Mapping[Purpose, File]) -> Claim:
    """Read a row of ``jobs`` as the one who just claimed it; ``now`` is the database's clock."""
    has_checkpoint = row.checkpoint_sha256 is not None
    return Claim(
        job_id=JobId(row.id),
        tenant=row.tenant,
        token=row.token,
        spec=JobSpec.model_validate(row.spec),
        inputs=inputs,
        checkpoint=CheckpointRecord(row.checkpoint_sha256, row.checkpoint_epoch) if has_checkpoint else None,
        attempt=row.attempt,
        deadline=_moment(row.deadline),
        seconds_left=(row.deadline - row.now) / 1000,
    )


def to_job(rows: Sequence[Row[Any]], *, kept_milliseconds: int | None) -> Job:
    """Read a job from its row, repeated for each of its inputs. It is kept so long after its end; None: for ever."""
    row, spec = rows[0], JobSpec.model_validate(rows[0].spec)
    seen = {row.role: InputRecord.model_validate(row._asdict()) for row in rows}
    triggered = seen.get("triggered")
    if triggered is not None and spec.triggered_data is not None:
        triggered = triggered.model_copy(update={"target_class": spec.triggered_data.target_class})
    model = {**seen["model"].model_dump(), "architecture": spec.model.architecture, "num_classes": row.num_classes}
    runs = row.status == "running"
    return Job(
        id=JobId(row.id),
        status=row.status,
        phase=row.phase if runs else None,
        progress=Progress.model_validate(row.progress) if runs and row.progress else None,
        attempt=row.attempt,
        error=Failure.model_validate(row.error) if row.error else None,
        model=ModelRecord.model_validate(model),
        clean_data=seen.get("clean"),
        test_data=seen.get("test"),
        triggered_data=triggered,
        removal=spec.removal,
        summary=Summary.model_validate(row.summary) if row.summary else None,
        warnings=row.warnings,
        timestamps=_timestamps(row, kept_milliseconds),
        metadata=spec.metadata,
    )


def to_key(row: Row[Any]) -> KeyRecord:
    """Read a row of ``api_keys``."""
    moments = {name: getattr(row, name) for name in ("created", "expires", "revoked")}
    times = {name: _moment(value) for name, value in moments.items() if value is not None}
    return KeyRecord(row.id, row.sha256, row.tenant, tuple(row.scopes), **times)


def _timestamps(row: Row[Any], kept: int | None) -> Timestamps:
    expires = None if kept is None or row.finished is None else row.finished + kept
    return Timestamps(
        created=_moment(row.created),
        started=_moment(row.started) if row.started is not None else None,
        finished=_moment(row.finished) if row.finished is not None else None,
        deadline=_moment(row.deadline),
        expires=_moment(expires) if expires is not None else None,
    )


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)
