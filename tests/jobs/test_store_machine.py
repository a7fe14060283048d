"""Any sequence of what clients, workers, sweepers and clocks may do, against a model of a few lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import URL, Engine, delete, select

from jobs.claims import Cancelled, CheckpointRecord, Claim, Crashed, Failed, Outcome, Released, Succeeded, SweepResult
from jobs.database import reading, sqlite_engine, writing
from jobs.errors import JobFinishedError, JobNotFinishedError, UnknownJobError
from jobs.models import TERMINAL, Job, JobId, Progress
from jobs.store import JobStore
from jobs.tables import artifacts, files, jobs, metadata
from tests.jobs.samples import CRASH, OUTCOMES, SUCCESS, change_row, digest, mine, spec_for

MAX_LOST, MAX_CRASHES = 2, 2
MOST_JOBS = 3  # so that several events meet in one
FAR_FUTURE = 2**50


@dataclass
class Model:
    """What a job should be. ``reason`` says how it came to its end."""

    status: str = "queued"
    token: int = 0
    attempt: int = 0
    lost: int = 0
    crashes: int = 0
    expired: bool = False
    overdue: bool = False
    reason: str | None = None
    end: Job | None = field(default=None, repr=False)

    @property
    def silent(self) -> bool:
        return self.status == "running" and self.expired

    @property
    def claimable(self) -> bool:
        return self.status == "queued" or (self.silent and self.lost < MAX_LOST)

    def ended(self, status: str, reason: str) -> None:
        self.status, self.reason = status, reason


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

    @initialize(target=known)
    def create_the_first(self) -> JobId:
        return self._create()

    @precondition(lambda self: len(self.models) < MOST_JOBS)
    @rule(target=known)
    def create(self) -> JobId:
        return self._create()

    def _create(self) -> JobId:
        job = mine(self.store).create(self.spec)
        self.models[job.id] = Model()
        return job.id

    @rule(job_id=known)
    def cancel(self, job_id: JobId) -> None:
        model = self.models.get(job_id)
        try:
            answer: str | type[Exception] = mine(self.store).request_cancel(job_id).status
        except (UnknownJobError, JobFinishedError) as error:
            answer = type(error)
        if model is None:
            assert answer is UnknownJobError
        elif model.status in TERMINAL:
            assert answer is JobFinishedError
        else:
            if model.status == "queued":
                model.ended("cancelled", "cancelled while waiting")
            else:
                model.status = "cancelling"
            assert answer == model.status

    @rule(job_id=known)
    def delete(self, job_id: JobId) -> None:
        try:
            mine(self.store).delete(job_id)
        except UnknownJobError:
            assert job_id not in self.models
        except JobNotFinishedError:
            assert self.models[job_id].status not in TERMINAL
        else:
            assert self.models.pop(job_id).status in TERMINAL

    # --- workers, of which any may be announced twice, slow or dead ---

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
        assert (claim.token, claim.attempt) == (model.token, model.attempt)
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
        assert self.store.save_checkpoint(claim, CheckpointRecord(digest(str(claim.token)), step)) == good
        if good:
            assert mine(self.store).get(claim.job_id).progress == progress

    @rule(claim=claims, outcome=st.sampled_from(OUTCOMES))
    def finish(self, claim: Claim, outcome: Outcome) -> None:
        model = self._owner(claim)
        assert self.store.finish(claim, outcome) == (model is not None)
        if model is None:
            self.seen.add("commit refused")
        elif model.status == "cancelling":
            model.ended("cancelled", "cancelled while running")
        else:
            self._expect(model, outcome)

    def _expect(self, model: Model, outcome: Outcome) -> None:
        model.status, model.expired = "queued", False
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

    @rule(job_id=known, outcome=st.sampled_from([*OUTCOMES, Crashed(CRASH)]))
    def take_and_finish(self, job_id: JobId, outcome: Outcome) -> None:
        claim = self.claim(job_id)
        if isinstance(claim, Claim):
            self.finish(claim, outcome)

    @rule(job_id=known, times=st.integers(1, MAX_LOST + 1))
    def take_and_go_silent(self, job_id: JobId, times: int) -> None:
        for _ in range(times):
            if isinstance(self.claim(job_id), Claim):
                self.expire(job_id, 0)

    # --- time, sweepers, restarts ---

    @rule(job_id=known, lease_until=st.sampled_from([0, FAR_FUTURE]))
    def expire(self, job_id: JobId, lease_until: int) -> None:
        model = self.models.get(job_id)
        if model is not None and model.status in ("running", "cancelling"):
            change_row(self.store, job_id, lease_until=lease_until)
            model.expired = True

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
        claimable = {job_id for job_id, model in self.models.items() if model.claimable}
        assert set(self.store.claimable()) == claimable
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
    def tokens_and_artifacts_are_those_of_the_model(self) -> None:
        with reading(self.engine) as connection:
            tokens = {row.id: row.token for row in connection.execute(select(jobs.c.id, jobs.c.token))}
            named = connection.execute(select(artifacts.c.job_id)).scalars().all()
        assert tokens == {job_id: model.token for job_id, model in self.models.items()}
        succeeded = [job_id for job_id, model in self.models.items() if model.status == "succeeded"]
        assert sorted(named) == sorted(succeeded * len(SUCCESS.artifacts))


def test_every_sequence_of_events_agrees_with_the_model(tmp_path: Path) -> None:
    engine = sqlite_engine(URL.create("sqlite", database=str(tmp_path / "jobs.sqlite3")), synchronous="OFF")
    metadata.create_all(engine)
    seen: set[str] = set()
    run_state_machine_as_test(
        lambda: StoreMachine(engine, seen),  # type: ignore[arg-type]  # any factory will do
        settings=settings(
            max_examples=200,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,  # so that what was seen is no matter of luck
            suppress_health_check=list(HealthCheck),
        ),
    )
    engine.dispose()
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
