"""The store, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from threading import Barrier

import pytest
from pydantic import ValidationError
from sqlalchemy import event, func, select, update

from jobs.claims import (
    Cancelled,
    CheckpointRecord,
    Crashed,
    Failed,
    InputInspection,
    Inspection,
    Outcome,
    Released,
    SweepResult,
)
from jobs.database import Now, open_engine, reading, writing
from jobs.errors import (
    FileInUseError,
    IdempotencyKeyReusedError,
    JobFinishedError,
    JobNotFinishedError,
    QueueFullError,
    RequestInFlightError,
    UnknownArtifactError,
    UnknownFileError,
    UnknownJobError,
    WrongPurposeError,
)
from jobs.idempotency import Reservation
from jobs.keys import KeyRecord
from jobs.models import FileId, Job, JobSpec, Progress
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.tables import idempotency_keys, jobs
from jobs.tenant import Limits, Upload, new_id
from tests.jobs.samples import (
    CRASH,
    FAILURE,
    OUTCOMES,
    SUCCESS,
    SUMMARY,
    add,
    artifact,
    change_row,
    claimed,
    digest,
    expire,
    mine,
    spec_for,
)

OpenStore = Callable[..., JobStore]


def kind(outcome: object) -> str:
    return type(outcome).__name__


# --- files ---


def test_a_file_comes_back_as_it_was_recorded(store: JobStore) -> None:
    made = mine(store).add_file(Upload(digest("x"), 5 * 1024**3, "clean", "bïrds 🐦.zip"))
    assert mine(store).get_file(made.id) == made
    assert (made.sha256, made.bytes, made.purpose, made.filename) == (digest("x"), 5 * 1024**3, "clean", "bïrds 🐦.zip")
    assert made.created.utcoffset() == timedelta(0)
    assert abs(made.created.timestamp() - time.time()) < 60


def test_files_are_listed_page_by_page_newest_first(store: JobStore) -> None:
    made = [add(store, "clean", f"{number}") for number in range(5)]
    first = mine(store).list_files(limit=2)
    second = mine(store).list_files(limit=2, after=first.next)
    last = mine(store).list_files(limit=2, after=second.next)
    assert [*first.files, *second.files, *last.files] == made[::-1]
    assert last.next is None


def test_a_deleted_file_is_gone(store: JobStore) -> None:
    file = add(store, "clean")
    mine(store).delete_file(file.id)
    with pytest.raises(UnknownFileError):
        mine(store).get_file(file.id)
    with pytest.raises(UnknownFileError):
        mine(store).delete_file(file.id)


def test_a_file_can_be_deleted_only_once_its_jobs_have_ended(store: JobStore) -> None:
    spec = spec_for(store)
    job = mine(store).create(spec)
    for file_id in (spec.model.file_id, spec.clean_data.file_id):
        with pytest.raises(FileInUseError):
            mine(store).delete_file(file_id)
    mine(store).request_cancel(job.id)
    mine(store).delete_file(spec.model.file_id)
    assert mine(store).get(job.id).model.sha256 == digest("model")  # the record outlives the file


def test_a_file_that_is_deleted_while_a_job_takes_it_is_either_gone_or_in_use(store: JobStore) -> None:
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            spec, together = spec_for(store), Barrier(2)

            def delete(file_id: FileId = spec.model.file_id, together: Barrier = together) -> bool:
                together.wait()
                try:
                    mine(store).delete_file(file_id)
                except FileInUseError:
                    return False
                return True

            deleted = pool.submit(delete)
            together.wait()
            try:
                job = mine(store).create(spec)
            except UnknownFileError:
                assert deleted.result()
            else:
                assert not deleted.result()
                assert claimed(store, job.id).inputs.keys() == {"model", "clean"}


# --- creating and reading jobs ---


def test_a_new_job_waits_and_names_what_it_was_given(open_store: OpenStore) -> None:
    store = open_store(default_deadline_seconds=100)
    test, triggered = add(store, "test"), add(store, "triggered")
    job = mine(store).create(
        spec_for(
            store,
            test_data={"file_id": test.id},
            triggered_data={"file_id": triggered.id, "target_class": "dög"},
            removal={"method": "medic", "preset": "paper", "seed": 7},
            metadata={"git.sha": "abc"},
        )
    )
    assert (job.status, job.terminal, job.attempt, job.phase, job.progress) == ("queued", False, 0, None, None)
    assert (job.model.sha256, job.model.architecture, job.model.num_classes) == (digest("model"), "medic/resnet8", None)
    assert (job.clean_data.sha256, job.metadata) == (digest("clean"), {"git.sha": "abc"})
    assert job.test_data is not None
    assert job.triggered_data is not None
    assert (job.test_data.file_id, job.triggered_data.target_class) == (test.id, "dög")
    assert (job.removal.method, job.removal.seed, getattr(job.removal, "impact", None)) == ("medic", 7, "magnitude")
    assert job.timestamps.deadline - job.timestamps.created == timedelta(seconds=100)
    assert (job.timestamps.started, job.timestamps.finished) == (None, None)
    assert mine(store).get(job.id) == job


def test_a_job_may_state_its_own_deadline(store: JobStore) -> None:
    times = mine(store).create(spec_for(store, deadline_seconds=60)).timestamps
    assert times.deadline - times.created == timedelta(seconds=60)


def test_every_problem_with_the_files_is_reported_at_once(store: JobStore) -> None:
    clean = add(store, "clean")
    spec = JobSpec.model_validate(
        {
            "model": {"file_id": "file_none", "architecture": "medic/resnet8"},
            "clean_data": {"file_id": clean.id},
            "test_data": {"file_id": clean.id},
            "triggered_data": {"file_id": "file_\0", "target_class": "dog"},
        }
    )
    with pytest.raises(UnknownFileError) as refused:
        mine(store).create(spec)
    assert {(problem.code, problem.pointer) for problem in refused.value.problems} == {
        ("unknown_file", "/model/file_id"),
        ("wrong_purpose", "/test_data/file_id"),
        ("unknown_file", "/triggered_data/file_id"),
    }
    assert mine(store).list_jobs().jobs == ()


def test_a_file_of_another_purpose_is_refused(store: JobStore) -> None:
    spec = spec_for(store)
    wrong = spec.model_copy(update={"clean_data": spec.clean_data.model_copy(update={"file_id": spec.model.file_id})})
    with pytest.raises(WrongPurposeError) as refused:
        mine(store).create(wrong)
    assert [problem.pointer for problem in refused.value.problems] == ["/clean_data/file_id"]


def test_only_waiting_jobs_count_against_the_limit(open_store: OpenStore) -> None:
    store = open_store(limits=Limits(2))
    spec = spec_for(store)
    first, _ = mine(store).create(spec), mine(store).create(spec)
    with pytest.raises(QueueFullError):
        mine(store).create(spec)
    claimed(store, first.id)
    mine(store).create(spec)
    assert len(mine(store).list_jobs().jobs) == 3


def test_jobs_are_listed_by_all_that_is_asked_for(store: JobStore) -> None:
    by_model = mine(store).create(spec_for(store, model="a", metadata={"team": "x", "git.sha": 'q"}'}))
    cancelled = mine(store).create(spec_for(store, model="b", metadata={"team": "x"}))
    mine(store).request_cancel(cancelled.id)

    def ids(**filters: object) -> list[str]:
        return [job.id for job in mine(store).list_jobs(**filters).jobs]  # type: ignore[arg-type]

    assert ids() == [cancelled.id, by_model.id]
    assert ids(status="queued") == [by_model.id]
    assert ids(model_sha256=digest("b")) == [cancelled.id]
    assert ids(model_sha256=digest("clean")) == []  # the digest of another input
    assert ids(metadata={"team": "x"}) == [cancelled.id, by_model.id]
    assert ids(metadata={"team": "x", "git.sha": 'q"}'}) == [by_model.id]
    assert ids(metadata={"team": "y"}) == []
    assert ids(metadata={"te\0am": "x"}) == []


def test_jobs_of_one_status_are_found_without_a_look_at_the_others(tmp_path: Path) -> None:
    engine = open_engine(Settings(data_dir=tmp_path))
    asked: list[tuple[str, tuple[object, ...]]] = []
    event.listen(engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
    JobStore(engine).of("anyone").list_jobs(status="failed", after="job_f")
    statement, parameters = next(each for each in asked if "LIMIT" in each[0])
    with reading(engine) as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    engine.dispose()
    assert any("(tenant=? AND status=? AND id<?)" in step.detail for step in plan)


def test_jobs_are_listed_page_by_page_newest_first(store: JobStore) -> None:
    spec = spec_for(store, metadata={"k": "v"})
    made = [mine(store).create(spec).id for _ in range(5)]
    seen, page = [], mine(store).list_jobs(limit=2)
    seen += [job.id for job in page.jobs]
    while page.next:
        page = mine(store).list_jobs(limit=2, after=page.next, metadata={"k": "v"})
        seen += [job.id for job in page.jobs]
    assert seen == made[::-1]


@pytest.mark.parametrize("characters", [1, 700, 10**6])
def test_a_page_of_long_specs_ends_early_and_none_is_left_out(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, characters: int
) -> None:
    monkeypatch.setattr("jobs.tenant.PAGE_CHARACTERS", characters)
    made = [mine(store).create(spec_for(store, metadata={"k": "v" * length})).id for length in (1, 512, 512, 1, 1)]
    pages = [mine(store).list_jobs(limit=3)]
    while pages[-1].next:
        pages.append(mine(store).list_jobs(limit=3, after=pages[-1].next))
    assert [job.id for page in pages for job in page.jobs] == made[::-1]
    assert len(pages) >= (5 if characters == 1 else 3 if characters == 700 else 2)


def test_unknown_ids_are_named_as_such_whatever_they_hold(store: JobStore) -> None:
    for job_id in ("job_none", "", "job_\0", "job_\ud800"):
        with pytest.raises(UnknownJobError):
            mine(store).get(job_id)
        with pytest.raises(UnknownJobError):
            mine(store).request_cancel(job_id)
        with pytest.raises(UnknownJobError):
            mine(store).delete(job_id)
        with pytest.raises(UnknownJobError):
            mine(store).artifacts(job_id)
        assert store.claim(job_id) is None
        with pytest.raises(UnknownFileError):
            mine(store).get_file(job_id)


def test_ids_sort_by_the_time_they_were_made() -> None:
    made = [new_id("job") for _ in range(1000)]
    assert made == sorted(made)
    assert len(set(made)) == 1000
    assert all(re.fullmatch(r"job_[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", job_id) for job_id in made)


# --- claim and lease ---


def test_a_claim_holds_what_a_worker_needs(store: JobStore) -> None:
    spec = spec_for(store, deadline_seconds=60)
    job = mine(store).create(spec)
    claim = claimed(store, job.id)
    assert (claim.job_id, claim.token, claim.attempt, claim.spec, claim.checkpoint) == (job.id, 1, 1, spec, None)
    assert {role: file.id for role, file in claim.inputs.items()} == {
        "model": spec.model.file_id,
        "clean": spec.clean_data.file_id,
    }
    assert 50 < claim.seconds_left <= 60
    assert claim.deadline == job.timestamps.deadline
    shown = mine(store).get(job.id)
    assert (shown.status, shown.attempt) == ("running", 1)
    assert shown.timestamps.started is not None


def test_of_many_who_claim_at_once_exactly_one_gets_the_job(store: JobStore) -> None:
    spec, workers = spec_for(store), 8
    with ThreadPoolExecutor(workers) as pool:
        for _ in range(5):
            job, together = mine(store).create(spec), Barrier(workers)

            def claim(job_id: str = job.id, together: Barrier = together) -> bool:
                together.wait()
                return store.claim(job_id) is not None

            assert sum(future.result() for future in [pool.submit(claim) for _ in range(workers)]) == 1
            assert mine(store).get(job.id).attempt == 1


def test_of_many_who_claim_a_lost_job_at_once_exactly_one_gets_it(store: JobStore) -> None:
    job, workers = mine(store).create(spec_for(store)), 8
    claimed(store, job.id)
    expire(store, job.id)
    together = Barrier(workers)

    def claim() -> int | None:
        together.wait()
        taken = store.claim(job.id)
        return None if taken is None else taken.token

    with ThreadPoolExecutor(workers) as pool:
        tokens = [future.result() for future in [pool.submit(claim) for _ in range(workers)]]
    assert sorted(tokens, key=lambda token: token or 0) == [None] * 7 + [2]


def test_a_job_is_handed_on_only_when_its_lease_has_run_out(open_store: OpenStore) -> None:
    store = open_store(lease_seconds=1)  # long enough that a busy machine does not miss the beat
    job = mine(store).create(spec_for(store))
    first = claimed(store, job.id)
    assert store.claim(job.id) is None
    assert store.claimable() == ()
    time.sleep(0.6)
    assert store.beat(first) == "running"
    time.sleep(0.6)
    assert store.claim(job.id) is None  # the beat moved its end
    time.sleep(1)
    assert store.claimable() == (job.id,)
    second = claimed(store, job.id)
    assert (second.token, second.attempt) == (2, 2)
    assert store.beat(first) is None


def test_a_lease_from_the_future_is_no_lease(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    claimed(store, job.id)
    an_hour_ahead = round((time.time() + 3600) * 1000)
    change_row(store, job.id, lease_until=an_hour_ahead)
    assert claimed(store, job.id).token == 2


def test_waiting_jobs_are_claimable_oldest_first(store: JobStore) -> None:
    spec = spec_for(store)
    made = [mine(store).create(spec).id for _ in range(4)]
    claimed(store, made[1])
    assert store.claimable() == (made[0], made[2], made[3])
    assert store.claimable(limit=2) == (made[0], made[2])


@pytest.mark.parametrize("outcome", OUTCOMES, ids=kind)
def test_a_worker_that_lost_its_lease_changes_nothing(store: JobStore, outcome: Outcome) -> None:
    job = mine(store).create(spec_for(store))
    stale = claimed(store, job.id)
    expire(store, job.id)
    claimed(store, job.id)
    before = mine(store).get(job.id)
    assert store.beat(stale) is None
    assert not store.advance(stale, phase="clone")
    assert not store.save_checkpoint(stale, CheckpointRecord(digest("stale"), 1))
    assert not store.inspected(stale, Inspection(num_classes=3, warnings=("stale",)))
    assert not store.finish(stale, outcome)
    assert mine(store).get(job.id) == before
    assert mine(store).artifacts(job.id) == ()
    assert digest("stale") not in store.live_digests()


# --- what a running job leaves ---


def test_phase_and_progress_show_while_the_job_runs(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    claim = claimed(store, job.id)
    progress = Progress(fraction=0.25, step=1, total_steps=4)
    assert store.advance(claim, phase="clone", progress=progress)
    shown = mine(store).get(job.id)
    assert (shown.phase, shown.progress) == ("clone", progress)
    assert store.finish(claim, Released())
    shown = mine(store).get(job.id)
    assert (shown.phase, shown.progress) == (None, None)


def test_what_intake_found_is_kept_with_job_and_files(store: JobStore) -> None:
    spec = spec_for(store)
    job = mine(store).create(spec)
    seen = Inspection(
        num_classes=10,
        inputs={
            "model": InputInspection(format="safetensors", details={"tensors": 3}),
            "clean": InputInspection(format="imagefolder-zip", samples=2500, details={"class_names": ["a", "b\0"]}),
        },
        warnings=("one class is missing",),
    )
    assert store.inspected(claimed(store, job.id), seen)
    shown = mine(store).get(job.id)
    assert (shown.model.num_classes, shown.model.format, shown.warnings) == (10, "safetensors", seen.warnings)
    assert (shown.clean_data.format, shown.clean_data.samples) == ("imagefolder-zip", 2500)
    assert mine(store).get_file(spec.model.file_id).inspection == {"tensors": 3}
    assert mine(store).get_file(spec.clean_data.file_id).inspection == {"class_names": ["a", "b\0"]}


def test_the_next_attempt_goes_on_from_the_last_checkpoint(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    first = claimed(store, job.id)
    assert store.save_checkpoint(first, CheckpointRecord(digest("one"), 1))
    assert store.save_checkpoint(first, CheckpointRecord(digest("two"), 2))
    expire(store, job.id)
    assert claimed(store, job.id).checkpoint == CheckpointRecord(digest("two"), 2)
    assert digest("one") not in store.live_digests()
    assert digest("two") in store.live_digests()


# --- the end ---


def test_success_brings_status_figures_and_artifacts_together(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    claim = claimed(store, job.id)
    store.inspected(claim, Inspection(warnings=("early",)))
    assert store.finish(claim, SUCCESS)
    done = mine(store).get(job.id)
    assert (done.status, done.terminal, done.summary, done.error) == ("succeeded", True, SUMMARY, None)
    assert done.warnings == ("early", *SUCCESS.warnings)
    assert done.timestamps.finished is not None
    assert mine(store).artifacts(job.id) == (artifact("model.safetensors"), artifact("report.json"))
    assert mine(store).artifact(job.id, "report.json") == artifact("report.json")
    with pytest.raises(UnknownArtifactError):
        mine(store).artifact(job.id, "../etc/passwd")


def test_failure_keeps_its_reason(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    assert store.finish(claimed(store, job.id), Failed(FAILURE))
    assert (mine(store).get(job.id).status, mine(store).get(job.id).error) == ("failed", FAILURE)
    assert mine(store).artifacts(job.id) == ()


@pytest.mark.parametrize("first", [SUCCESS, Failed(FAILURE), Cancelled()], ids=kind)
@pytest.mark.parametrize("second", OUTCOMES, ids=kind)
def test_a_job_ends_once(store: JobStore, first: Outcome, second: Outcome) -> None:
    job = mine(store).create(spec_for(store))
    claim = claimed(store, job.id)
    assert store.finish(claim, first)
    end, artifacts = mine(store).get(job.id), mine(store).artifacts(job.id)
    assert end.terminal
    assert not store.finish(claim, second)
    assert store.beat(claim) is None
    assert store.claim(job.id) is None
    assert store.sweep() == SweepResult()
    with pytest.raises(JobFinishedError):
        mine(store).request_cancel(job.id)
    assert (mine(store).get(job.id), mine(store).artifacts(job.id)) == (end, artifacts)


def test_of_many_commits_at_once_exactly_one_takes_effect(store: JobStore) -> None:
    job, writers = mine(store).create(spec_for(store)), 8
    claim, together = claimed(store, job.id), Barrier(writers)

    def commit() -> bool:
        together.wait()
        return store.finish(claim, SUCCESS) is not None

    with ThreadPoolExecutor(writers) as pool:
        assert sum(future.result() for future in [pool.submit(commit) for _ in range(writers)]) == 1
    assert len(mine(store).artifacts(job.id)) == len(SUCCESS.artifacts)


def test_a_released_job_waits_again_and_the_attempt_does_not_count(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    store.announced(job.id)
    assert store.finish(claimed(store, job.id), Released())
    assert (mine(store).get(job.id).status, mine(store).get(job.id).attempt) == ("queued", 0)
    again = claimed(store, job.id)
    assert (again.token, again.attempt) == (2, 1)


def test_a_job_that_crashes_twice_fails_with_the_reason(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    assert store.finish(claimed(store, job.id), Crashed(CRASH))
    assert mine(store).get(job.id).status == "queued"
    assert store.finish(claimed(store, job.id), Crashed(CRASH))
    assert (mine(store).get(job.id).status, mine(store).get(job.id).error) == ("failed", CRASH)


def test_a_deleted_job_is_gone_with_its_artifacts(store: JobStore) -> None:
    job = mine(store).create(spec_for(store, metadata={"k": "v"}))
    with pytest.raises(JobNotFinishedError):
        mine(store).delete(job.id)
    claim = claimed(store, job.id)
    with pytest.raises(JobNotFinishedError):
        mine(store).delete(job.id)
    store.finish(claim, SUCCESS)
    assert digest("report.json") in store.live_digests()
    mine(store).delete(job.id)
    assert digest("report.json") not in store.live_digests()
    assert mine(store).list_jobs(metadata={"k": "v"}).jobs == ()
    with pytest.raises(UnknownJobError):
        mine(store).get(job.id)


# --- cancel ---


def test_a_waiting_job_is_cancelled_at_once(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    assert mine(store).request_cancel(job.id).status == "cancelled"
    assert store.claim(job.id) is None
    assert store.claimable() == ()


@pytest.mark.parametrize("outcome", OUTCOMES, ids=kind)
def test_cancel_wins_over_every_outcome(store: JobStore, outcome: Outcome) -> None:
    job = mine(store).create(spec_for(store))
    claim = claimed(store, job.id)
    assert mine(store).request_cancel(job.id).status == "cancelling"
    assert mine(store).request_cancel(job.id).status == "cancelling"
    assert store.beat(claim) == "cancelling"
    assert not store.advance(claim, phase="clone")
    assert store.finish(claim, outcome) == Cancelled()
    ended = mine(store).get(job.id)
    assert (ended.status, ended.error, ended.summary) == ("cancelled", None, None)
    assert mine(store).artifacts(job.id) == ()


def test_cancel_and_success_at_once_leave_one_of_them(store: JobStore) -> None:
    spec = spec_for(store)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(10):
            job = mine(store).create(spec)
            claim, together = claimed(store, job.id), Barrier(2)

            def cancel(job_id: str = job.id, together: Barrier = together) -> bool:
                together.wait()
                try:
                    return mine(store).request_cancel(job_id).status == "cancelling"
                except JobFinishedError:
                    return False

            asked = pool.submit(cancel)
            together.wait()
            written = store.finish(claim, SUCCESS)
            ended = "cancelled" if asked.result() else "succeeded"
            assert written == (Cancelled() if ended == "cancelled" else SUCCESS)
            assert mine(store).get(job.id).status == ended
            assert len(mine(store).artifacts(job.id)) == (0 if ended == "cancelled" else len(SUCCESS.artifacts))


# --- the sweeper ---


def test_a_cancelled_job_whose_worker_went_silent_is_ended_by_the_sweeper(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    claim = claimed(store, job.id)
    mine(store).request_cancel(job.id)
    assert store.sweep() == SweepResult()
    expire(store, job.id)
    assert store.claim(job.id) is None
    assert store.sweep() == SweepResult(cancelled=1)
    assert mine(store).get(job.id).status == "cancelled"
    assert not store.finish(claim, Cancelled())


def test_a_job_that_this_version_cannot_read_comes_up_a_bounded_number_of_times(store: JobStore) -> None:
    job_id = mine(store).create(spec_for(store)).id
    change_row(store, job_id, spec={"written": "by another version"})
    for _ in range(6):  # the first claim, and five that find the one before silent
        with pytest.raises(ValidationError):
            store.claim(job_id)
        expire(store, job_id)
    assert store.claim(job_id) is None
    assert store.sweep().worker_lost == 1


def test_a_job_that_was_lost_five_times_fails(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    for attempt in range(1, 7):  # the first, and one after each loss
        assert claimed(store, job.id).attempt == attempt
        assert store.sweep() == SweepResult()
        expire(store, job.id)
    assert store.claim(job.id) is None
    assert store.claimable() == ()
    assert store.sweep() == SweepResult(worker_lost=1)
    error = mine(store).get(job.id).error
    assert error is not None
    assert (error.code, error.error_class) == ("worker_lost", "infrastructure")


def test_jobs_past_their_deadline_fail_unless_a_worker_looks_after_them(store: JobStore) -> None:
    spec = spec_for(store)
    waiting, watched, silent, early = (mine(store).create(spec) for _ in range(4))
    for job in (watched, silent):
        claimed(store, job.id)
    for job in (waiting, watched, silent):
        change_row(store, job.id, deadline=1)
    expire(store, silent.id)
    assert store.sweep() == SweepResult(deadline_exceeded=2)
    for job in (waiting, silent):
        error = mine(store).get(job.id).error
        assert error is not None
        assert (error.code, error.error_class) == ("deadline_exceeded", "timeout")
    assert (mine(store).get(watched.id).status, mine(store).get(early.id).status) == ("running", "queued")


def test_sweepers_beside_each_other_end_each_job_once(store: JobStore) -> None:
    spec, sweepers = spec_for(store), 4
    for _ in range(20):
        change_row(store, mine(store).create(spec).id, deadline=1)
    together = Barrier(sweepers)

    def sweep() -> int:
        together.wait()
        return store.sweep().deadline_exceeded

    with ThreadPoolExecutor(sweepers) as pool:
        assert sum(future.result() for future in [pool.submit(sweep) for _ in range(sweepers)]) == 20


def test_a_job_that_is_just_being_finished_is_left_alone_by_the_sweeper(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    claimed(store, job.id)
    change_row(store, job.id, deadline=1, lease_until=0)
    with ThreadPoolExecutor(1) as pool:
        with writing(store._engine) as connection:
            connection.execute(update(jobs).where(jobs.c.id == job.id).values(status="succeeded"))
            swept = pool.submit(store.sweep)
            wait([swept], timeout=0.3)  # it has looked at the row, or waits for its turn
        assert swept.result() == SweepResult()
    assert mine(store).get(job.id).status == "succeeded"


def test_only_claimable_jobs_that_no_message_was_sent_for_lately_are_announced_again(store: JobStore) -> None:
    spec = spec_for(store)
    fresh, old, sent, sent_long_ago, clock_set_back, running, silent = (mine(store).create(spec).id for _ in range(7))
    now = round(time.time() * 1000)
    for job_id in (old, sent, sent_long_ago, clock_set_back, running, silent):
        change_row(store, job_id, created=now - 100_000)
    store.announced(sent)
    change_row(store, sent_long_ago, announced=now - 60_000)
    change_row(store, clock_set_back, announced=now + 60_000)
    claimed(store, running)
    claimed(store, silent)
    expire(store, silent)
    due = store.unannounced(older_than_seconds=30)
    assert due == (old, sent_long_ago, clock_set_back, silent)
    assert fresh not in due


def test_a_released_job_is_announced_at_once(store: JobStore) -> None:
    job = mine(store).create(spec_for(store))
    change_row(store, job.id, created=1)
    store.announced(job.id)
    assert store.unannounced(older_than_seconds=30) == ()
    store.finish(claimed(store, job.id), Released())
    assert store.unannounced(older_than_seconds=30) == (job.id,)


def test_a_digest_lives_as_long_as_something_needs_it(store: JobStore) -> None:
    spec = spec_for(store)
    job = mine(store).create(spec)
    claim = claimed(store, job.id)
    store.save_checkpoint(claim, CheckpointRecord(digest("checkpoint"), 1))
    inputs = {digest("model"), digest("clean")}
    assert store.live_digests() == {*inputs, digest("checkpoint")}
    store.finish(claim, SUCCESS)
    outputs = {digest("report.json"), digest("model.safetensors")}
    assert store.live_digests() == inputs | outputs
    mine(store).delete_file(spec.model.file_id)
    mine(store).delete_file(spec.clean_data.file_id)
    assert store.live_digests() == outputs


# --- one request, one effect ---


def remembered(store: JobStore, *, seconds_ago: float) -> None:
    """Make everything that is kept of Idempotency-Keys so old."""
    with writing(store._engine) as connection:
        connection.execute(update(idempotency_keys).values(created=Now() - round(1000 * seconds_ago)))


def reserved(store: JobStore, key: str = "k", fingerprint: str = "same") -> Reservation:
    found = mine(store).reserve(key, fingerprint)
    assert isinstance(found, Reservation)
    return found


def test_what_was_made_under_a_key_comes_back_to_the_same_request_for_a_day(store: JobStore) -> None:
    made = mine(store).create(spec_for(store), reserved(store))
    remembered(store, seconds_ago=24 * 3600 - 60)
    store.sweep()
    found = mine(store).reserve("k", "same")
    assert isinstance(found, str)
    assert Job.model_validate_json(found) == made
    with pytest.raises(IdempotencyKeyReusedError):
        mine(store).reserve("k", "other")
    assert isinstance(store.of("other").reserve("k", "other"), Reservation)  # to each tenant its own
    remembered(store, seconds_ago=24 * 3600 + 60)
    reserved(store, fingerprint="other")


def test_a_key_is_held_until_its_request_is_answered(store: JobStore) -> None:
    first = reserved(store)
    with pytest.raises(RequestInFlightError):
        mine(store).reserve("k", "same")
    mine(store).release(first)
    mine(store).release(first)  # once more changes nothing
    mine(store).create(spec_for(store), reserved(store))
    assert len(mine(store).list_jobs().jobs) == 1


def test_a_request_that_died_gives_its_key_up_and_commits_nothing_after(store: JobStore) -> None:
    spec = spec_for(store)
    late = reserved(store)
    remembered(store, seconds_ago=61)
    second = reserved(store)
    with pytest.raises(RequestInFlightError):
        mine(store).create(spec, late)
    mine(store).release(late)
    made = mine(store).create(spec, second)
    for again in (late, second):
        with pytest.raises(RequestInFlightError):
            mine(store).add_file(Upload(digest("x"), 1, "clean", "x"), again)
    assert mine(store).list_jobs().jobs == (made,)
    assert len(mine(store).list_files().files) == 2


def test_of_many_at_once_one_gets_the_key(store: JobStore) -> None:
    def attempt(_: int) -> bool:
        try:
            return isinstance(mine(store).reserve("k", "same"), Reservation)
        except RequestInFlightError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(24))) == 1


def test_sweeping_forgets_what_is_over(store: JobStore) -> None:
    mine(store).create(spec_for(store), reserved(store))
    reserved(store, "other")
    remembered(store, seconds_ago=24 * 3600 + 1)
    store.sweep()
    with reading(store._engine) as connection:
        assert connection.scalar(select(func.count()).select_from(idempotency_keys)) == 0


# --- tenants and keys ---


def test_a_tenant_sees_its_own_and_nothing_else(store: JobStore) -> None:
    spec = spec_for(store)
    job, other = mine(store).create(spec), store.of("other")
    with pytest.raises(UnknownFileError) as refused:
        other.create(spec)
    assert [problem.pointer for problem in refused.value.problems] == ["/model/file_id", "/clean_data/file_id"]
    for method in (other.get, other.request_cancel, other.delete, other.artifacts):
        with pytest.raises(UnknownJobError):
            method(job.id)
    for method in (other.get_file, other.delete_file):
        with pytest.raises(UnknownFileError):
            method(spec.model.file_id)
    assert (other.list_jobs().jobs, other.list_files().files) == ((), ())
    assert mine(store).list_jobs().jobs == (job,)
    assert len(mine(store).list_files().files) == 2


def test_a_key_lets_in_until_it_is_revoked_or_expires(store: JobStore) -> None:
    for number in ("1", "2", "3"):
        valid_seconds = -1 if number == "3" else 1000
        store.add_key(KeyRecord(number, digest(number), "birds", ("jobs:read",)), valid_seconds=valid_seconds)
    assert store.revoke_key("2")
    assert not store.revoke_key("4")
    found = store.find_key("1")
    assert found is not None
    assert (found.sha256, found.tenant, found.scopes) == (digest("1"), "birds", ("jobs:read",))
    assert [store.find_key(number) for number in ("2", "3", "4")] == [None] * 3
    assert [(known.id, known.revoked is not None) for known in store.list_keys()] == [
        ("1", False),
        ("2", True),
        ("3", False),
    ]
