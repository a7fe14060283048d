"""What is kept no longer goes, what a job still needs stays, and a record is left that says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import exists, func, select, update

from jobs.artifacts import FolderStore
from jobs.claims import CheckpointRecord, Released
from jobs.database import reading, writing
from jobs.errors import JobExpiredError, JobFinishedError, UnknownFileError, UnknownJobError
from jobs.models import Job
from jobs.settings import Settings
from jobs.store import DAY_MILLISECONDS, JobStore, open_store
from jobs.sweeper import sweep_jobs
from jobs.tables import files, job_inputs, jobs
from jobs.tenant import Limits
from tests.jobs.samples import OUTCOMES, SUCCESS, add, change_row, claimed, digest, mine, spec_for
from tests.logs import logged

WEEK = Limits(kept_milliseconds=7 * DAY_MILLISECONDS)
Opener = Callable[..., JobStore]


@pytest.fixture
def weekly(open_store: Opener) -> JobStore:
    """A store that keeps everything for a week."""
    return open_store(limits=WEEK)


def finished(store: JobStore, *, days_ago: float, model: str = "model") -> Job:
    """A job whose end is so long ago, and whose files are older."""
    job = mine(store).create(spec_for(store, model=model))
    assert store.finish(claimed(store, job.id), SUCCESS)
    change_row(store, job.id, finished=jobs.c.finished - round(days_ago * DAY_MILLISECONDS))
    age_files(store, days=days_ago + 1)
    return mine(store).get(job.id)


def age_files(store: JobStore, *, days: float) -> None:
    with writing(store._engine) as connection:
        connection.execute(update(files).values(created=files.c.created - round(days * DAY_MILLISECONDS)))


def names(store: JobStore) -> set[str]:
    """What lies in the store by the name of its file."""
    return {file.filename for file in mine(store).list_files().files}


def test_a_job_that_ended_long_ago_leaves_a_record_without_results_and_without_files(weekly: JobStore) -> None:
    old, young = finished(weekly, days_ago=7.1, model="old"), mine(weekly).create(spec_for(weekly, model="young"))
    assert weekly.expire() == (1, 2)
    for read in (mine(weekly).get, mine(weekly).artifacts, lambda job_id: mine(weekly).artifact(job_id, "report.json")):
        with pytest.raises(JobExpiredError, match=old.id):
            read(old.id)
    with pytest.raises(JobFinishedError):
        mine(weekly).request_cancel(old.id)
    assert [job.id for job in mine(weekly).list_jobs().jobs] == [young.id]
    assert names(weekly) == {"young.zip", "clean.zip"}
    assert weekly.live_digests() == {digest("young"), digest("clean")}
    assert weekly.expire() == (0, 0)


def test_the_sweeper_removes_records_and_then_their_bytes(weekly: JobStore, tmp_path: Path) -> None:
    blobs = FolderStore(tmp_path / "blobs")
    for content in ("old", "young", "clean", "report.json", "model.safetensors"):
        blobs.put_bytes(content.encode())
    finished(weekly, days_ago=8, model="old")
    mine(weekly).create(spec_for(weekly, model="young"))
    with logged() as lines:
        sweep_jobs(weekly, None, announce_again_seconds=30)
    assert [line["message"] for line in lines] == ["kept no longer: 1 jobs, 2 files"]
    assert blobs.collect(weekly.live_digests, older_than_seconds=-60) == 3
    assert blobs.path(digest("young")).exists()


def test_to_another_tenant_what_expired_was_never_there(weekly: JobStore) -> None:
    old = finished(weekly, days_ago=8)
    weekly.expire()
    with pytest.raises(UnknownJobError):
        weekly.of("fish").get(old.id)


def test_the_record_of_what_expired_can_be_deleted(weekly: JobStore) -> None:
    old = finished(weekly, days_ago=8)
    weekly.expire()
    mine(weekly).delete(old.id)
    with pytest.raises(UnknownJobError):
        mine(weekly).get(old.id)


def test_a_job_says_when_it_expires_and_is_kept_until_then(weekly: JobStore) -> None:
    waiting = mine(weekly).create(spec_for(weekly))
    assert waiting.timestamps.expires is None
    job = finished(weekly, days_ago=6.9)
    times = job.timestamps
    assert times.expires is not None
    assert times.finished is not None
    assert (times.expires - times.finished).days == 7
    assert weekly.expire() == (0, 0)
    assert mine(weekly).get(job.id) == job
    assert {each.name for each in mine(weekly).artifacts(job.id)} == {"report.json", "model.safetensors"}


@pytest.mark.parametrize("outcome", OUTCOMES, ids=lambda outcome: type(outcome).__name__)
def test_whatever_the_end_of_a_job_it_expires_and_one_without_end_does_not(weekly: JobStore, outcome: object) -> None:
    job = mine(weekly).create(spec_for(weekly))
    claim = claimed(weekly, job.id)
    weekly.save_checkpoint(claim, CheckpointRecord(digest("state"), 1))
    assert weekly.finish(claim, outcome)  # type: ignore[arg-type]
    has_end = mine(weekly).get(job.id).terminal
    change_row(weekly, job.id, created=0, started=0, finished=jobs.c.finished - 8 * DAY_MILLISECONDS)
    age_files(weekly, days=9)
    assert weekly.expire() == ((1, 2) if has_end else (0, 0))
    assert (digest("state") in weekly.live_digests()) == (not has_end)


@pytest.mark.parametrize("state", ["queued", "running", "cancelling", "released"])
def test_a_file_stays_while_a_job_that_has_not_ended_names_it_however_old_both_are(
    weekly: JobStore, state: str
) -> None:
    job = mine(weekly).create(spec_for(weekly))
    add(weekly, "clean", "forgotten")
    if state != "queued":
        claim = claimed(weekly, job.id)
        if state == "cancelling":
            mine(weekly).request_cancel(job.id)
        if state == "released":
            weekly.finish(claim, Released())
    change_row(weekly, job.id, created=0)
    age_files(weekly, days=100)
    assert weekly.expire() == (0, 1)
    assert names(weekly) == {"model.zip", "clean.zip"}


def test_a_file_stays_while_the_results_of_a_job_that_names_it_are_kept(weekly: JobStore) -> None:
    finished(weekly, days_ago=6)
    age_files(weekly, days=100)
    assert weekly.expire() == (0, 0)


def test_without_retention_all_is_kept_for_ever(open_store: Opener) -> None:
    store = open_store()
    job = finished(store, days_ago=10_000)
    assert store.expire() == (0, 0)
    assert job.timestamps.expires is None


def test_it_goes_in_small_steps_the_oldest_first(weekly: JobStore) -> None:
    old = [finished(weekly, days_ago=days) for days in (8, 10, 9)]
    assert weekly.expire(most=2)[0] == 2
    assert [job.id for job in mine(weekly).list_jobs().jobs] == [old[0].id]


def test_the_setting_is_in_days(settings: Settings) -> None:
    store = open_store(settings.model_copy(update={"retention_days": 0.5}))
    finished(store, days_ago=0.6)
    kept = finished(store, days_ago=0.4)
    assert store.expire()[0] == 1
    assert [job.id for job in mine(store).list_jobs().jobs] == [kept.id]
    store.close()


def test_any_number_of_sweepers_remove_everything_once(open_store: Opener, weekly: JobStore) -> None:
    for _ in range(12):
        finished(weekly, days_ago=8)
    sweepers = [open_store(limits=WEEK) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        rounds = [pool.submit(store.expire, most=2) for _ in range(6) for store in sweepers]
        first = [each.result() for each in rounds]
    rest = [weekly.expire(), weekly.expire()]  # what another had locked is skipped, and comes the next time
    assert [sum(counts) for counts in zip(*first, *rest, strict=True)] == [12, 24]


def test_of_a_new_job_and_the_removal_of_its_files_one_loses_cleanly(open_store: Opener) -> None:
    store = open_store(limits=Limits(kept_milliseconds=0))
    over = threading.Event()
    outcomes: set[str] = set()

    def remove() -> None:
        while not over.is_set():
            store.expire()

    def create() -> None:
        for _ in range(60):
            try:
                mine(store).create(spec_for(store))
                outcomes.add("created")
            except UnknownFileError:
                outcomes.add("refused")

    with ThreadPoolExecutor(4) as pool:
        removing = [pool.submit(remove) for _ in range(2)]
        for creating in [pool.submit(create) for _ in range(2)]:
            creating.result()
        over.set()
        for each in removing:
            each.result()
    missing = ~exists().where(files.c.id == job_inputs.c.file_id)
    with reading(store._engine) as connection:
        assert connection.scalar(select(func.count()).select_from(job_inputs).where(missing)) == 0
    assert "created" in outcomes
