"""Any sequence of what two tenants ask for: files, jobs, limits, Idempotency-Keys; against a model of a few lines.

``MEDIC_TEST_FULL=1`` tries ten times as many sequences, and longer ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

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
from jobs.models import TERMINAL, File, FileId, Job, JobId, JobSpec, Purpose
from jobs.store import JobStore
from jobs.tables import files, idempotency_keys, jobs
from jobs.tenant import Limits, TenantStore
from tests.jobs.machines import asked, patient, run_machine
from tests.jobs.samples import SUCCESS, digest

MOST_WAITING, MOST_WAITING_OF_TENANT, MOST_BYTES = 3, 2, 8
RESERVED_SECONDS, REMEMBERED_SECONDS = 60, 24 * 3600
PASSING_SECONDS = [120, 86_100, 86_460]  # no sum of them comes within a minute of what counts
OUTPUTS = tuple(sorted(SUCCESS.artifacts, key=lambda artifact: artifact.name))

Pair = tuple[FileId, FileId]
"""A model and clean data, of one tenant as a rule, gone or not."""

tenants = st.sampled_from(["cats", "dogs"])
keys = st.sampled_from(["k", "l"])
fingerprints = st.sampled_from(["1", "2"])


@dataclass
class ModelJob:
    """What a job should be."""

    tenant: str
    pair: Pair
    made: Job
    status: str = "queued"
    claim: Claim | None = None


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
    known: Bundle[JobId] = Bundle("known")
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
        self.jobs: dict[JobId, ModelJob] = {}
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
        return (ids[0], ids[1]) if len(ids) == 2 else multiple()

    @rule(reservation=reservations, size=st.integers(1, 3))
    def upload_under(self, reservation: Reservation, size: int) -> None:
        self._upload(reservation.tenant, "clean", size, reservation)

    def _upload(self, who: str, purpose: Purpose, size: int, reservation: Reservation | None = None) -> File | None:
        sha256 = digest(f"{purpose} {size}")  # both tenants may send the same
        add = partial(self.of(who).add_file, sha256=sha256, size=size, purpose=purpose, filename="f.zip")
        answer = asked(lambda: add(reservation=reservation))
        stored = sum(known.bytes for owner, known in self.files.values() if owner == who)
        refusal = StorageQuotaError if stored + size > MOST_BYTES else self._refusal_of(reservation)
        if not self.expect(answer, refusal):
            return None
        assert isinstance(answer, File)
        self.files[answer.id] = who, answer
        self._settle(reservation, answer)
        return answer

    @rule(who=tenants, pair=pairs, place=st.integers(0, 1))
    def delete_file(self, who: str, pair: Pair, place: int) -> None:
        file_id = pair[place]
        refusal: type[JobsError] | None = None
        if not self._owns(who, file_id):
            refusal = UnknownFileError
        elif any(file_id in job.pair for job in self.jobs.values() if job.status not in TERMINAL):
            refusal = FileInUseError
        if self.expect(asked(self.of(who).delete_file, file_id), refusal):
            del self.files[file_id]

    @rule(who=tenants, pair=pairs, place=st.integers(0, 1))
    def look_at_a_file(self, who: str, pair: Pair, place: int) -> None:
        refusal = None if self._owns(who, pair[place]) else UnknownFileError
        answer = asked(self.of(who).get_file, pair[place])
        if self.expect(answer, refusal):
            assert answer == self.files[pair[place]][1]

    def _owns(self, who: str, file_id: FileId) -> bool:
        return file_id in self.files and self.files[file_id][0] == who

    # --- jobs ---

    @rule(target=known, who=tenants, pair=pairs, mistaken=st.booleans())
    def create(self, who: str, pair: Pair, mistaken: bool) -> JobId | MultipleResults[JobId]:
        return self._create(who, pair[::-1] if mistaken else pair)

    @rule(target=known, reservation=reservations, pair=pairs)
    def create_under(self, reservation: Reservation, pair: Pair) -> JobId | MultipleResults[JobId]:
        return self._create(reservation.tenant, pair, reservation)

    def _create(self, who: str, pair: Pair, reservation: Reservation | None = None) -> JobId | MultipleResults[JobId]:
        spec = JobSpec.model_validate(
            {"model": {"file_id": pair[0], "architecture": "medic/resnet8"}, "clean_data": {"file_id": pair[1]}}
        )
        answer = asked(self.of(who).create, spec, reservation)
        if not self.expect(answer, self._refusal(who, pair) or self._refusal_of(reservation)):
            return multiple()
        assert isinstance(answer, Job)
        self.jobs[answer.id] = ModelJob(who, pair, answer)
        self._settle(reservation, answer)
        return answer.id

    def _refusal(self, who: str, pair: Pair) -> type[JobsError] | None:
        waiting = [job.tenant for job in self.jobs.values() if job.status == "queued"]
        if not all(self._owns(who, file_id) for file_id in pair):
            return UnknownFileError
        if [self.files[file_id][1].purpose for file_id in pair] != ["model", "clean"]:
            return WrongPurposeError
        if len(waiting) >= MOST_WAITING:
            return QueueFullError
        return TenantQueueFullError if waiting.count(who) >= MOST_WAITING_OF_TENANT else None

    def _job_of(self, who: str, job_id: JobId) -> ModelJob | None:
        job = self.jobs.get(job_id)
        return job if job is not None and job.tenant == who else None

    @rule(who=tenants, job_id=known)
    def look_at_a_job(self, who: str, job_id: JobId) -> None:
        job, view = self._job_of(who, job_id), self.of(who)
        refusal = None if job else UnknownJobError
        found, outputs = asked(view.get, job_id), asked(view.artifacts, job_id)
        if self.expect(found, refusal):
            assert isinstance(found, Job)
            assert job is not None
            assert (found.status, found.model.file_id, found.clean_data.file_id) == (job.status, *job.pair)
            refusal = None if job.status == "succeeded" else UnknownArtifactError
            assert outputs == (OUTPUTS if job.status == "succeeded" else ())
        else:
            assert outputs is UnknownJobError
        self.expect(asked(view.artifact, job_id, OUTPUTS[0].name), refusal)

    @rule(who=tenants, job_id=known)
    def cancel(self, who: str, job_id: JobId) -> None:
        job = self._job_of(who, job_id)
        refusal = UnknownJobError if job is None else JobFinishedError if job.status in TERMINAL else None
        if self.expect(asked(self.of(who).request_cancel, job_id), refusal) and job is not None:
            job.status = "cancelled" if job.status == "queued" else "cancelling"

    @rule(who=tenants, job_id=known)
    def delete_job(self, who: str, job_id: JobId) -> None:
        job = self._job_of(who, job_id)
        refusal = UnknownJobError if job is None else None if job.status in TERMINAL else JobNotFinishedError
        if self.expect(asked(self.of(who).delete, job_id), refusal):
            del self.jobs[job_id]

    @rule(job_id=known)
    def start(self, job_id: JobId) -> None:
        job, claim = self.jobs.get(job_id), self.store.claim(job_id)
        assert (claim is not None) == (job is not None and job.status == "queued")
        if job is not None and claim is not None:
            job.status, job.claim = "running", claim

    @rule(job_id=known)
    def finish(self, job_id: JobId) -> None:
        job = self.jobs.get(job_id)
        if job is not None and job.claim is not None:
            assert self.store.finish(job.claim, SUCCESS) == (job.status not in TERMINAL)
            job.status = {"running": "succeeded", "cancelling": "cancelled"}.get(job.status, job.status)

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

    @rule(target=known, who=tenants, key=keys, fingerprint=fingerprints, pair=pairs)
    def post(self, who: str, key: str, fingerprint: str, pair: Pair) -> JobId | MultipleResults[JobId]:
        """As a request does it: what is refused gives its key back."""
        reservation = self.reserve(who, key, fingerprint)
        if not isinstance(reservation, Reservation):
            return multiple()
        made = self._create(who, pair, reservation)
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
        for who in ("cats", "dogs"):
            mine = {job_id: job.status for job_id, job in self.jobs.items() if job.tenant == who}
            listed = [(job.id, job.status) for job in self.of(who).list_jobs().jobs]
            assert listed == sorted(mine.items(), reverse=True)
            own = [file for owner, file in self.files.values() if owner == who]
            assert list(self.of(who).list_files().files) == sorted(own, key=lambda file: file.id, reverse=True)

    @rule(who=tenants, size=st.integers(1, 3), status=st.sampled_from(["queued", "succeeded"]))
    def look_for_jobs(self, who: str, size: int, status: str) -> None:
        sha256 = digest(f"model {size}")
        found = self.of(who).list_jobs(status=status, model_sha256=sha256)  # type: ignore[arg-type]
        assert {job.id for job in found.jobs} == {
            job_id
            for job_id, job in self.jobs.items()
            if (job.tenant, job.status, job.made.model.sha256) == (who, status, sha256)
        }

    @invariant()
    def keys_and_bytes_are_kept_as_long_as_they_are_needed(self) -> None:
        with reading(self.engine) as connection:
            table = idempotency_keys.c
            rows = connection.execute(select(table.tenant, table.key, table.made.is_not(None))).all()
        assert {(tenant, key): made for tenant, key, made in rows} == {
            name: kept.made is not None for name, kept in self.kept.items()
        }
        assert self.store.live_digests() == set(self._needed())

    def _needed(self) -> Iterator[str]:
        yield from (file.sha256 for _, file in self.files.values())
        if any(job.status == "succeeded" for job in self.jobs.values()):
            yield from (artifact.sha256 for artifact in OUTPUTS)


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
        "abandoned",
        "forgotten",
    }
