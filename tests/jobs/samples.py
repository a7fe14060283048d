"""Small values that tests of the store are made of."""

from __future__ import annotations

import hashlib

from sqlalchemy import update

from jobs.claims import Cancelled, Claim, Crashed, Failed, Outcome, Released, Succeeded
from jobs.database import writing
from jobs.models import Artifact, Comparison, Failure, File, JobSpec, Purpose, Summary
from jobs.store import JobStore
from jobs.tables import DEFAULT_TENANT, jobs
from jobs.tenant import TenantStore, Upload

FAILURE = Failure(code="nan_loss", error_class="user", message="the loss became NaN")
CRASH = Failure(code="child_killed", error_class="resource", message="the child was killed", retryable=True)
SUMMARY = Summary(
    clean_accuracy=Comparison(before=0.9, after=0.8, n=10, interval_before=(0.6, 0.98), interval_after=(0.5, 0.94))
)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def artifact(name: str) -> Artifact:
    return Artifact(name=name, sha256=digest(name), bytes=len(name), media_type="application/json")


SUCCESS = Succeeded(summary=SUMMARY, artifacts=(artifact("report.json"), artifact("model.safetensors")))
OUTCOMES: tuple[Outcome, ...] = (SUCCESS, Failed(FAILURE), Cancelled(), Released(), Crashed(CRASH))


def mine(store: JobStore) -> TenantStore:
    """What clients see who know of no tenants."""
    return store.of(DEFAULT_TENANT)


def add(store: JobStore, purpose: Purpose, content: str | None = None) -> File:
    content = content or purpose
    return mine(store).add_file(Upload(digest(content), len(content), purpose, f"{content}.zip"))


def spec_for(store: JobStore, *, model: str = "model", **more: object) -> JobSpec:
    """A spec whose files exist; ``more`` are its other fields."""
    weights, clean = add(store, "model", model), add(store, "clean")
    named = {"model": {"file_id": weights.id, "architecture": "medic/resnet8"}, "clean_data": {"file_id": clean.id}}
    return JobSpec.model_validate({**named, **more})


def claimed(store: JobStore, job_id: str) -> Claim:
    claim = store.claim(job_id)
    assert claim is not None
    return claim


def change_row(store: JobStore, job_id: str, **values: object) -> None:
    """Write past every rule: this is how tests make time pass."""
    with writing(store._engine) as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(values))


def expire(store: JobStore, job_id: str) -> None:
    change_row(store, job_id, lease_until=0)
