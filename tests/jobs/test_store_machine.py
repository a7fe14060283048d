"""Any sequence of what clients, workers, sweepers, messages and clocks may do to jobs, against a model of a few lines.

``MEDIC_TEST_FULL=1`` tries ten times as many sequences, and longer ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from sqlalchemy import Engine, delete, select, update

from jobs.claims import Cancelled, CheckpointRecord, Claim, Crashed, Failed, Outcome, Released, Succeeded, SweepResult
from jobs.database import reading, writing
from jobs.errors import JobFinishedError, JobNotFinishedError, UnknownJobError
from jobs.models import TERMINAL, Job, JobId, Progress
from jobs.store import JobStore
from jobs.tables import artifacts, files, jobs
from tests.jobs.machines import asked, patient, run_machine
from tests.jobs.samples import CRASH, OUTCOMES, SUCCESS, change_row, digest, mine, spec_for

MAX_LOST, MAX_CRASHES = 2, 2
MOST_JOBS = 3  # so that several events meet in one
LATELY_SECONDS = 1000
FAR_FUTURE = 2**50


@dataclass
class Model:
    """What a job should be. ``announced``: lately, since it was queued; ``reason`` says how it came to its end."""

    status: str = "queued"
    token: int = 0
    attempt: int = 0
    lost: int = 0
    crashes: int = 0
    expired: bool = False
    overdue: bool = False
    young: bool = True
    announced: bool | None = None
    checkpoint: CheckpointRecord | None = None
    reason: str | None = None
    end: Job | None = field(default=None, repr=False)

    @property
    def silent(self) -> bool:
        return self.status == "running" and self.expired

    @property
    def claimable(self) -> bool:
        return self.status == "queued" or (self.silent and self.lost < MAX_LOST)

    @property
    def due(self) -> bool:
        """Whether it is to be announced again."""
        return self.claimable and not (self.young if self.announced is None else self.announced)

    def ended(self, status: str, reason: str) -> None:
        self.status, self.reason, self.checkpoint = status, reason, None


class StoreMachine(RuleBasedStateMachine):
    """One database, any number of jobs, claims that may long be stale."""

    known: Bundle[JobId] = Bundle("known")
    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self, engine: Engine, seen: set[str]) -> None:
        super().__init__()
        self.engine, self.seen = engine, seen
        with writing(engine) as connection:
            connection.execute(delete(jobs))
            connection.execute(delete(files))
        self.store = self._open()
        self.spec = spec_for(self.store)
        self.models: dict[JobId, Model] = {}

    def _open(self) -> JobStore:
        return JobStore(self.engine, lease_seconds=1000, max_lost=MAX_LOST, max_crashes=MAX_CRASHES)

    # --- clients ---

    @initialize(target=known, waits=st.booleans())
    def create_the_first(self, waits: bool) -> JobId:
        return self._create(waits)

    @initialize(target=known, waits=st.booleans())
    def create_the_second(self, waits: bool) -> JobId:
        return self._create(waits)

    @precondition(lambda self: len(self.models) < MOST_JOBS)
    @rule(target=known, waits=st.booleans())
    def create(self, waits: bool) -> JobId:
        return self._create(waits)

    def _create(self, waits: bool) -> JobId:
        job = mine(self.store).create(self.spec)
        self.models[job.id] = Model()
        if waits:
            self.let_time_pass()
        return job.id

    @rule(job_id=known)
    def cancel(self, job_id: JobId) -> None:
        model = self.models.get(job_id)
        answer = asked(mine(self.store).request_cancel, job_id)
        if model is None:
            assert answer is UnknownJobError
        elif model.status in TERMINAL:
            assert answer is JobFinishedError
        else:
            if model.status == "queued":
                model.ended("cancelled", "cancelled while waiting")
            else:
                model.status = "cancelling"
            assert isinstance(answer, Job)
            assert answer.status == model.status

    @rule(job_id=known)
    def delete(self, job_id: JobId) -> None:
        model, answer = self.models.get(job_id), asked(mine(self.store).delete, job_id)
        if model is None:
            assert answer is UnknownJobError
        elif model.status not in TERMINAL:
            assert answer is JobNotFinishedError
        else:
            assert answer is None
            del self.models[job_id]

    # --- messages: each may be lost, or come any number of times and at any time, which is a claim ---

    @rule(job_id=known)
    def announce(self, job_id: JobId) -> None:
        self.store.announced(job_id)
        if job_id in self.models:
            self.models[job_id].announced = True

    @rule(job_id=known)
    def set_the_clock_back_after_an_announcement(self, job_id: JobId) -> None:
        if job_id in self.models:
            change_row(self.store, job_id, announced=FAR_FUTURE)
            self.models[job_id].announced = False

    # --- workers, of which any may be slow or dead ---

    @rule(target=claims, job_id=known)
    def claim(self, job_id: JobId) -> Claim | MultipleResults[Claim]:
        model, claim = self.models.get(job_id), self.store.claim(job_id)
        if model is None or not model.claimable:
            assert claim is None
            self.seen.add("claim refused")
            return multiple()
        assert claim is not None
        model.lost += model.silent
        model.status, model.expired = "running", False
        model.token, model.attempt = model.token + 1, model.attempt + 1
        assert (claim.token, claim.attempt, claim.checkpoint) == (model.token, model.attempt, model.checkpoint)
        return claim

    def _owner(self, claim: Claim) -> Model | None:
        model = self.models.get(claim.job_id)
        good = model is not None and model.token == claim.token and model.status in ("running", "cancelling")
        return model if good else None

    @rule(claim=claims)
    def beat(self, claim: Claim) -> None:
        model = self._owner(claim)
        assert self.store.beat(claim) == (model and model.status)
        if model is not None:
            model.expired = False

    @rule(claim=claims, step=st.integers(1, 9))
    def work(self, claim: Claim, step: int) -> None:
        model = self._owner(claim)
        good = model is not None and model.status == "running"
        progress = Progress(fraction=step / 10, step=step, total_steps=10)
        assert self.store.advance(claim, phase="clone", progress=progress) == good
        checkpoint = CheckpointRecord(digest(str(claim.token)), step)
        assert self.store.save_checkpoint(claim, checkpoint) == good
        if model is not None and good:
            model.checkpoint = checkpoint
            assert mine(self.store).get(claim.job_id).progress == progress

    @rule(claim=claims, outcome=st.sampled_from(OUTCOMES))
    def finish(self, claim: Claim, outcome: Outcome) -> None:
        model = self._owner(claim)
        cancelling = model is not None and model.status == "cancelling"
        expected = Cancelled() if cancelling else outcome
        assert self.store.finish(claim, outcome) == (None if model is None else expected)
        if model is None:
            self.seen.add("commit refused")
        elif model.status == "cancelling":
            model.ended("cancelled", "cancelled while running")
        else:
            self._expect(model, outcome)

    def _expect(self, model: Model, outcome: Outcome) -> None:
        model.status, model.expired, model.announced = "queued", False, None
        match outcome:
            case Succeeded():
                model.ended("succeeded", "succeeded")
            case Failed():
                model.ended("failed", "nan_loss")
            case Cancelled():
                model.ended("cancelled", "cancelled while running")
            case Released():
                model.attempt -= 1
            case Crashed():
                model.crashes += 1
                if model.crashes == MAX_CRASHES:
                    model.ended("failed", "child_killed")

    @rule(target=claims, job_id=known, outcome=st.sampled_from([*OUTCOMES, Crashed(CRASH)]))
    def run_twice(self, job_id: JobId, outcome: Outcome) -> MultipleResults[Claim]:
        """As two messages do it; the second comes for nothing unless the first let go of the job."""
        return multiple(*self._run(job_id, outcome), *self._run(job_id, outcome))

    def _run(self, job_id: JobId, outcome: Outcome) -> Iterator[Claim]:
        self.announce(job_id)
        claim = self.claim(job_id)
        if isinstance(claim, Claim):
            self.finish(claim, outcome)
            yield claim

    @rule(target=claims, job_id=known, times=st.integers(1, MAX_LOST + 1))
    def take_and_go_silent(self, job_id: JobId, times: int) -> MultipleResults[Claim]:
        taken = []
        for _ in range(times):
            taken.append(self.claim(job_id))
            self.expire(job_id, 0)
        return multiple(*(claim for claim in taken if isinstance(claim, Claim)))

    @rule(target=claims, job_id=known)
    def take_and_cancel(self, job_id: JobId) -> Claim | MultipleResults[Claim]:
        claim = self.claim(job_id)
        if isinstance(claim, Claim):
            self.cancel(job_id)
        return claim

    # --- time, sweepers, restarts ---

    @rule(job_id=known, lease_until=st.sampled_from([0, FAR_FUTURE]))
    def expire(self, job_id: JobId, lease_until: int) -> None:
        model = self.models.get(job_id)
        if model is not None and model.status in ("running", "cancelling"):
            change_row(self.store, job_id, lease_until=lease_until)
            model.expired = True

    @rule()
    def let_time_pass(self) -> None:
        """Enough for another announcement; leases and deadlines have rules of their own."""
        earlier = {column: column - 2 * 1000 * LATELY_SECONDS for column in (jobs.c.created, jobs.c.announced)}
        with writing(self.engine) as connection:
            connection.execute(update(jobs).where(jobs.c.finished.is_(None)).values(earlier))
        for model in self.models.values():
            model.young, model.announced = False, None if model.announced is None else False

    @rule(job_id=known)
    def pass_the_deadline(self, job_id: JobId) -> None:
        if job_id in self.models and self.models[job_id].status not in TERMINAL:
            change_row(self.store, job_id, deadline=1)
            self.models[job_id].overdue = True

    @rule()
    def sweep(self) -> None:
        expected = {"cancelled": 0, "worker_lost": 0, "deadline_exceeded": 0}
        for model in self.models.values():
            if model.status == "cancelling" and model.expired:
                model.ended("cancelled", "cancelled by the sweeper")
                expected["cancelled"] += 1
            elif (model.status == "queued" or model.silent) and model.overdue:
                model.ended("failed", "deadline_exceeded")
                expected["deadline_exceeded"] += 1
            elif model.silent and model.lost == MAX_LOST:
                model.ended("failed", "worker_lost")
                expected["worker_lost"] += 1
        assert self.store.sweep() == SweepResult(**expected)

    @rule()
    def restart(self) -> None:
        self.engine.dispose()
        self.store = self._open()

    # --- what always holds ---

    @invariant()
    def the_records_are_those_of_the_model(self) -> None:
        found = {job.id: job for job in mine(self.store).list_jobs().jobs}
        assert {job_id: (job.status, job.attempt) for job_id, job in found.items()} == {
            job_id: (model.status, model.attempt) for job_id, model in self.models.items()
        }
        oldest_first = sorted(found, key=lambda job_id: (found[job_id].timestamps.created, job_id))
        claimable = [job_id for job_id in oldest_first if self.models[job_id].claimable]
        assert list(self.store.claimable()) == claimable
        due = [job_id for job_id in claimable if self.models[job_id].due]
        assert list(self.store.unannounced(older_than_seconds=LATELY_SECONDS)) == due
        for job_id, model in self.models.items():
            if model.status in TERMINAL:
                self._check_end(model, found[job_id])

    def _check_end(self, model: Model, job: Job) -> None:
        assert model.reason is not None
        self.seen.add(model.reason)
        model.end = model.end or job
        assert job == model.end  # nothing that has ended changes any more
        assert (job.error.code if job.error else None) == (model.reason if model.status == "failed" else None)
        assert (job.summary is not None) == (model.status == "succeeded")

    @invariant()
    def tokens_checkpoints_and_artifacts_are_those_of_the_model(self) -> None:
        with reading(self.engine) as connection:
            rows = connection.execute(select(jobs.c.id, jobs.c.token, jobs.c.checkpoint_sha256)).all()
            named = connection.execute(select(artifacts.c.job_id)).scalars().all()
        assert {job_id: held for job_id, *held in rows} == {
            job_id: [model.token, model.checkpoint and model.checkpoint.sha256] for job_id, model in self.models.items()
        }
        succeeded = [job_id for job_id, model in self.models.items() if model.status == "succeeded"]
        assert sorted(named) == sorted(succeeded * len(SUCCESS.artifacts))

    def teardown(self) -> None:
        """Whatever was lost or left, some time, a sweeper and one worker bring every job to its end."""
        self.sweep()
        for job_id in self.models:
            self.expire(job_id, 0)
        self.sweep()
        self.let_time_pass()
        for job_id in self.store.unannounced(older_than_seconds=LATELY_SECONDS):
            self.run_twice(job_id, SUCCESS)
        self.the_records_are_those_of_the_model()
        assert {model.status for model in self.models.values()} <= TERMINAL


@patient
def test_every_sequence_of_events_agrees_with_the_model(hasty_engine: Engine) -> None:
    seen: set[str] = set()
    run_machine(lambda: StoreMachine(hasty_engine, seen))
    assert seen == {
        "claim refused",
        "commit refused",
        "succeeded",
        "nan_loss",
        "child_killed",
        "worker_lost",
        "deadline_exceeded",
        "cancelled while waiting",
        "cancelled while running",
        "cancelled by the sweeper",
    }
