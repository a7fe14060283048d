"""Any sequence of what two tenants ask for: files, jobs, limits, Idempotency-Keys; against a model of a few lines.

``MEDIC_TEST_FULL=1`` tries ten times as many sequences, and longer ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import hypothesis.strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, initialize, invariant, multiple, rule
from sqlalchemy import Engine, delete, select, update

from jobs.claims import Claim, SweepResult
from jobs.database import reading, writing
from jobs.errors import (
    FileInUseError,
    IdempotencyKeyReusedError,
    JobFinishedError,
    JobNotFinishedError,
    JobsError,
    QueueFullError,
    RequestInFlightError,
    StorageQuotaError,
    TenantQueueFullError,
    UnknownArtifactError,
    UnknownFileError,
    UnknownJobError,
    WrongPurposeError,
)
from jobs.idempotency import Reservation
from jobs.models import TERMINAL, File, FileId, Job, JobId, JobSpec, Purpose, Status
from jobs.store import JobStore
from jobs.tables import files, idempotency_keys, jobs
from jobs.tenant import Limits, TenantStore, Upload
from tests.jobs.machines import asked, patient, run_machine
from tests.jobs.samples import SUCCESS, digest

MOST_WAITING, MOST_WAITING_OF_TENANT, MOST_BYTES = 2, 1, 12
RESERVED_SECONDS, REMEMBERED_SECONDS = 60, 24 * 3600
PASSING_SECONDS = [120, 86_100, 86_460]  # no sum of them comes within a minute of what counts
OUTPUTS = tuple(sorted(SUCCESS.artifacts, key=lambda artifact: artifact.name))

OTHER = {"cats": "dogs", "dogs": "cats"}

tenants = st.sampled_from(list(OTHER))
seldom = st.sampled_from([False, False, False, True])
keys = st.sampled_from(["k", "l"])
fingerprints = st.sampled_from(["1", "2"])


class Pair(NamedTuple):
    """A model and clean data that were uploaded together; by now, either may be gone."""

    tenant: str
    model: FileId
    clean: FileId


@dataclass(eq=False)
class ModelJob:
    """What a job should be."""

    id: JobId
    tenant: str
    sha256: str
    inputs: tuple[FileId, FileId]
    status: str = "queued"
    claim: Claim | None = None
    is_deleted: bool = False

    @property
    def has_ended(self) -> bool:
        return self.status in TERMINAL


@dataclass
class Remembered:
    """What should be kept of an Idempotency-Key."""

    fingerprint: str
    reservation: Reservation
    seconds: int = 0
    made: File | Job | None = None

    @property
    def is_over(self) -> bool:
        return self.seconds > (RESERVED_SECONDS if self.made is None else REMEMBERED_SECONDS)


class TenantMachine(RuleBasedStateMachine):
    """One database and two tenants, each of whom may ask for what is the other's, or gone."""

    pairs: Bundle[Pair] = Bundle("pairs")
    known: Bundle[ModelJob] = Bundle("known")
    reservations: Bundle[Reservation] = Bundle("reservations")

    def __init__(self, engine: Engine, seen: set[str]) -> None:
        super().__init__()
        self.engine, self.seen = engine, seen
        with writing(engine) as connection:
            for table in (jobs, files, idempotency_keys):
                connection.execute(delete(table))
        limits = Limits(MOST_WAITING, MOST_WAITING_OF_TENANT, MOST_BYTES)
        self.store = JobStore(engine, lease_seconds=1000, limits=limits)
        self.files: dict[FileId, tuple[str, File]] = {}
        self.jobs: list[ModelJob] = []
        self.kept: dict[tuple[str, str], Remembered] = {}

    def of(self, who: str) -> TenantStore:
        return self.store.of(who)

    def expect(self, answer: object, refusal: type[JobsError] | None) -> bool:
        """Check that what was asked for is refused so, or not at all; say whether it was granted."""
        if refusal is None:
            assert not isinstance(answer, type)
            return True
        assert answer is refusal
        self.seen.add(refusal.code)
        return False

    # --- files ---

    @initialize(target=pairs)
    def cats_upload(self) -> Pair | MultipleResults[Pair]:
        return self.upload("cats", 1)

    @initialize(target=pairs)
    def dogs_upload(self) -> Pair | MultipleResults[Pair]:
        return self.upload("dogs", 1)

    @rule(target=pairs, who=tenants, size=st.integers(1, 3))
    def upload(self, who: str, size: int) -> Pair | MultipleResults[Pair]:
        made = [self._upload(who, purpose, size) for purpose in ("model", "clean")]
        ids = [file.id for file in made if file is not None]
        return Pair(who, *ids) if len(ids) == 2 else multiple()

    @rule(reservation=reservations, size=st.integers(1, 3))
    def upload_under(self, reservation: Reservation, size: int) -> None:
        self._upload(reservation.tenant, "clean", size, reservation)

    def _upload(self, who: str, purpose: Purpose, size: int, reservation: Reservation | None = None) -> File | None:
        upload = Upload(digest(f"{purpose} {size}"), size, purpose, "f.zip")  # both tenants may send the same
        answer = asked(self.of(who).add_file, upload, reservation)
        if not self.expect(answer, self._refusal_of_bytes(who, size) or self._refusal_of(reservation)):
            return None
        assert isinstance(answer, File)
        self.files[answer.id] = who, answer
        self._settle(reservation, answer)
        return answer

    def _refusal_of_bytes(self, who: str, size: int) -> type[JobsError] | None:
        stored = sum(known.bytes for owner, known in self.files.values() if owner == who)
        return StorageQuotaError if stored + size > MOST_BYTES else None

    @rule(pair=pairs, is_model=st.booleans(), is_strange=seldom)
    def delete_file(self, pair: Pair, is_model: bool, is_strange: bool) -> None:
        who, file_id = _asking(pair, is_strange), pair.model if is_model else pair.clean
        refusal: type[JobsError] | None = None
        if not self._owns(who, file_id):
            refusal = UnknownFileError
        elif any(file_id in job.inputs for job in self.jobs if not job.has_ended):
            refusal = FileInUseError
        if self.expect(asked(self.of(who).delete_file, file_id), refusal):
            del self.files[file_id]

    @rule(pair=pairs, is_strange=seldom)
    def look_at_a_file(self, pair: Pair, is_strange: bool) -> None:
        who = _asking(pair, is_strange)
        answer = asked(self.of(who).get_file, pair.model)
        if self.expect(answer, None if self._owns(who, pair.model) else UnknownFileError):
            assert answer == self.files[pair.model][1]

    def _owns(self, who: str, file_id: FileId) -> bool:
        return file_id in self.files and self.files[file_id][0] == who

    # --- jobs ---

    @rule(target=known, pair=pairs, is_strange=seldom, is_mistaken=seldom)
    def create(self, pair: Pair, is_strange: bool, is_mistaken: bool) -> ModelJob | MultipleResults[ModelJob]:
        inputs = (pair.clean, pair.model) if is_mistaken else (pair.model, pair.clean)
        return self._create(_asking(pair, is_strange), inputs)

    @rule(target=known, reservation=reservations, pair=pairs)
    def create_under(self, reservation: Reservation, pair: Pair) -> ModelJob | MultipleResults[ModelJob]:
        return self._create(reservation.tenant, (pair.model, pair.clean), reservation)

    def _create(
        self, who: str, inputs: tuple[FileId, FileId], reservation: Reservation | None = None
    ) -> ModelJob | MultipleResults[ModelJob]:
        answer = asked(self.of(who).create, _spec_of(inputs), reservation)
        if not self.expect(answer, self._refusal_of_job(who, inputs) or self._refusal_of(reservation)):
            return multiple()
        return self._accepted(answer, who, inputs, reservation)

    def _accepted(
        self, answer: object, who: str, inputs: tuple[FileId, FileId], reservation: Reservation | None
    ) -> ModelJob:
        assert isinstance(answer, Job)
        self._settle(reservation, answer)
        self.jobs.append(ModelJob(answer.id, who, answer.model.sha256, inputs))
        return self.jobs[-1]

    @rule(target=known, who=tenants, size=st.integers(1, 3))
    def sanitize(self, who: str, size: int) -> ModelJob | MultipleResults[ModelJob]:
        return self._sanitize(who, size)

    @rule(target=known, reservation=reservations, size=st.integers(1, 3))
    def sanitize_under(self, reservation: Reservation, size: int) -> ModelJob | MultipleResults[ModelJob]:
        return self._sanitize(reservation.tenant, size, reservation)

    def _sanitize(
        self, who: str, size: int, reservation: Reservation | None = None
    ) -> ModelJob | MultipleResults[ModelJob]:
        """Files and job come together, or not at all."""
        model = Upload(digest(f"model {size}"), size, "model", "f.zip")
        clean = Upload(digest(f"clean {size}"), size, "clean", "f.zip")
        answer = asked(self.of(who).create, _spec_of((model.id, clean.id)), reservation, (model, clean))
        refusal = self._refusal_of_bytes(who, 2 * size) or self._refusal_of_room(who) or self._refusal_of(reservation)
        if not self.expect(answer, refusal):
            return multiple()
        for upload in (model, clean):
            file = self.of(who).get_file(upload.id)
            assert (file.sha256, file.bytes, file.purpose) == (upload.sha256, size, upload.purpose)
            self.files[upload.id] = who, file
        self.seen.add("files with their job")
        return self._accepted(answer, who, (model.id, clean.id), reservation)

    def _refusal_of_job(self, who: str, inputs: tuple[FileId, FileId]) -> type[JobsError] | None:
        if not all(self._owns(who, file_id) for file_id in inputs):
            return UnknownFileError
        if [self.files[file_id][1].purpose for file_id in inputs] != ["model", "clean"]:
            return WrongPurposeError
        return self._refusal_of_room(who)

    def _refusal_of_room(self, who: str) -> type[JobsError] | None:
        waiting = [job.tenant for job in self.jobs if job.status == "queued"]
        if len(waiting) >= MOST_WAITING:
            return QueueFullError
        return TenantQueueFullError if waiting.count(who) >= MOST_WAITING_OF_TENANT else None

    @rule(job=known, is_strange=seldom)
    def look_at_a_job(self, job: ModelJob, is_strange: bool) -> None:
        view, refusal = self.of(_asking(job, is_strange)), _unknown(job, is_strange)
        found, outputs = asked(view.get, job.id), asked(view.artifacts, job.id)
        if self.expect(found, refusal):
            assert isinstance(found, Job)
            assert (found.status, found.model.file_id, found.clean_data.file_id) == (job.status, *job.inputs)
            refusal = None if job.status == "succeeded" else UnknownArtifactError
            assert outputs == (OUTPUTS if job.status == "succeeded" else ())
        else:
            assert outputs is UnknownJobError
        self.expect(asked(view.artifact, job.id, OUTPUTS[0].name), refusal)

    @rule(who=tenants, size=st.integers(1, 3), status=st.sampled_from(["queued", "succeeded"]))
    def look_for_jobs(self, who: str, size: int, status: Status) -> None:
        sha256, own = digest(f"model {size}"), [job for job in self.jobs if job.tenant == who]
        found = self.of(who).list_jobs(status=status).jobs
        assert {job.id for job in found} == {job.id for job in own if job.status == status}
        found = self.of(who).list_jobs(model_sha256=sha256).jobs
        assert {job.id for job in found} == {job.id for job in own if job.sha256 == sha256}

    @rule(job=known, is_strange=seldom)
    def cancel(self, job: ModelJob, is_strange: bool) -> None:
        answer = asked(self.of(_asking(job, is_strange)).request_cancel, job.id)
        if self.expect(answer, _unknown(job, is_strange) or (JobFinishedError if job.has_ended else None)):
            job.status = "cancelled" if job.status == "queued" else "cancelling"

    @rule(job=known, is_strange=seldom)
    def delete_job(self, job: ModelJob, is_strange: bool) -> None:
        answer = asked(self.of(_asking(job, is_strange)).delete, job.id)
        if self.expect(answer, _unknown(job, is_strange) or (None if job.has_ended else JobNotFinishedError)):
            self.jobs.remove(job)
            job.is_deleted = True

    @rule(job=known)
    def start(self, job: ModelJob) -> None:
        claim = self.store.claim(job.id)
        assert (claim is not None) == (job.status == "queued")
        if claim is not None:
            job.status, job.claim = "running", claim

    @rule(job=known)
    def finish(self, job: ModelJob) -> None:
        if job.claim is not None:
            assert (self.store.finish(job.claim, SUCCESS) is None) == job.has_ended
            job.status = {"running": "succeeded", "cancelling": "cancelled"}.get(job.status, job.status)

    @rule(job=known)
    def run(self, job: ModelJob) -> None:
        self.start(job)
        self.finish(job)

    # --- one request, one effect ---

    @rule(target=reservations, who=tenants, key=keys, fingerprint=fingerprints)
    def reserve(self, who: str, key: str, fingerprint: str) -> Reservation | MultipleResults[Reservation]:
        kept = self.kept.get((who, key))
        answer = asked(self.of(who).reserve, key, fingerprint)
        if kept is None or kept.is_over:
            assert isinstance(answer, Reservation)
            self.kept[who, key] = Remembered(fingerprint, answer)
            return answer
        if kept.fingerprint != fingerprint:
            self.expect(answer, IdempotencyKeyReusedError)
        elif kept.made is None:
            self.expect(answer, RequestInFlightError)
        else:
            assert isinstance(answer, str)
            assert type(kept.made).model_validate_json(answer) == kept.made
            self.seen.add("replayed")
        return multiple()

    @rule(reservation=reservations)
    def release(self, reservation: Reservation) -> None:
        self.of(reservation.tenant).release(reservation)
        if self._refusal_of(reservation) is None:
            del self.kept[reservation.tenant, reservation.key]

    @rule(target=known, pair=pairs, key=keys, fingerprint=fingerprints)
    def post(self, pair: Pair, key: str, fingerprint: str) -> ModelJob | MultipleResults[ModelJob]:
        """As a request does it: what is refused gives its key back."""
        reservation = self.reserve(pair.tenant, key, fingerprint)
        if not isinstance(reservation, Reservation):
            return multiple()
        made = self.create_under(reservation, pair)
        self.release(reservation)
        return made

    def _refusal_of(self, reservation: Reservation | None) -> type[JobsError] | None:
        if reservation is None:
            return None
        kept = self.kept.get((reservation.tenant, reservation.key))
        good = kept is not None and kept.reservation == reservation and kept.made is None
        return None if good else RequestInFlightError

    def _settle(self, reservation: Reservation | None, made: File | Job) -> None:
        if reservation is not None:
            self.kept[reservation.tenant, reservation.key].made = made

    @rule(seconds=st.sampled_from(PASSING_SECONDS))
    def let_time_pass(self, seconds: int) -> None:
        earlier = {"created": idempotency_keys.c.created - 1000 * seconds}
        with writing(self.engine) as connection:
            connection.execute(update(idempotency_keys).values(earlier))
        for kept in self.kept.values():
            kept.seconds += seconds

    @rule()
    def sweep(self) -> None:
        assert self.store.sweep() == SweepResult()
        over = [name for name, kept in self.kept.items() if kept.is_over]
        for name in over:
            self.seen.add("abandoned" if self.kept.pop(name).made is None else "forgotten")

    # --- what always holds ---

    @invariant()
    def each_tenant_sees_its_own_newest_first(self) -> None:
        for who in OTHER:
            mine = sorted(((job.id, job.status) for job in self.jobs if job.tenant == who), reverse=True)
            assert [(job.id, job.status) for job in self.of(who).list_jobs().jobs] == mine
            own = [file for owner, file in self.files.values() if owner == who]
            assert list(self.of(who).list_files().files) == sorted(own, key=lambda file: file.id, reverse=True)

    @invariant()
    def keys_and_bytes_are_kept_as_long_as_they_are_needed(self) -> None:
        with reading(self.engine) as connection:
            table = idempotency_keys.c
            rows = connection.execute(select(table.tenant, table.key, table.made.is_not(None))).all()
        assert {(tenant, key): made for tenant, key, made in rows} == {
            name: kept.made is not None for name, kept in self.kept.items()
        }
        assert self.store.live_digests() == set(self._needed())

    def teardown(self) -> None:
        """In the end nothing is kept of any key."""
        for seconds in PASSING_SECONDS:
            self.let_time_pass(seconds)
            self.sweep()
            self.keys_and_bytes_are_kept_as_long_as_they_are_needed()
        assert not self.kept

    def _needed(self) -> Iterator[str]:
        yield from (file.sha256 for _, file in self.files.values())
        if any(job.status == "succeeded" for job in self.jobs):
            yield from (artifact.sha256 for artifact in OUTPUTS)


def _spec_of(inputs: tuple[FileId, FileId]) -> JobSpec:
    model, clean = inputs
    named = {"model": {"file_id": model, "architecture": "medic/resnet8"}, "clean_data": {"file_id": clean}}
    return JobSpec.model_validate(named)


def _asking(owned: Pair | ModelJob, is_strange: bool) -> str:
    return OTHER[owned.tenant] if is_strange else owned.tenant


def _unknown(job: ModelJob, is_strange: bool) -> type[JobsError] | None:
    return UnknownJobError if is_strange or job.is_deleted else None


@patient
def test_every_sequence_of_requests_agrees_with_the_model(hasty_engine: Engine) -> None:
    seen: set[str] = set()
    run_machine(lambda: TenantMachine(hasty_engine, seen))
    assert seen == {
        "unknown_file",
        "wrong_purpose",
        "file_in_use",
        "storage_quota_exceeded",
        "queue_full",
        "tenant_queue_full",
        "unknown_job",
        "unknown_artifact",
        "job_finished",
        "job_not_finished",
        "idempotency_key_reused",
        "request_in_flight",
        "replayed",
        "files with their job",
        "abandoned",
        "forgotten",
    }
