"""Kill it, cancel it, let it run out of time: the job ends once, and as if nothing had happened."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.stack import POLLING, Stack, digests, kill_tree, stack, wait_ended, wait_for
from jobs.models import Job, JobId
from medic_client.client import MedicClient

LONG = {"epochs": 12, "batch_size": 4}


def epochs_done(client: MedicClient, job_id: JobId) -> float:
    progress = client.job(job_id).progress
    return progress.fraction * LONG["epochs"] if progress else 0.0


def kept_epochs(log: str, job_id: JobId) -> list[int]:
    return [int(epoch) for epoch in re.findall(rf"{job_id}.*: checkpoint of epoch (\d+) kept", log)]


@pytest.fixture
def own(inputs: Path, tmp_path: Path) -> Iterator[Stack]:
    """A service of which processes are killed."""
    with stack(tmp_path / "service", inputs) as made:
        yield made


@pytest.fixture
def api(own: Stack) -> Iterator[MedicClient]:
    """Its API, which lives on."""
    with own.api() as client:
        yield client


def test_a_job_whose_worker_is_killed_half_way_ends_with_the_same_weights_and_metrics(
    own: Stack, api: MedicClient
) -> None:
    first = own.start(*POLLING)
    undisturbed = wait_ended(api, api.sanitize(own.spec(**LONG)).id)
    job_id = api.sanitize(own.spec(**LONG)).id
    wait_for(lambda: epochs_done(api, job_id) > 5, 60)
    children = psutil.Process(first.pid).children(recursive=True)
    assert children  # the trainer
    kill_tree(first)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
    second = own.start(*POLLING)
    job = wait_ended(api, job_id)
    assert (job.status, undisturbed.status) == ("succeeded", "succeeded")
    assert job.attempt == 2
    assert digests(api, job) == digests(api, undisturbed)
    assert job.summary == undisturbed.summary
    before, after = kept_epochs(own.log(first), job_id), kept_epochs(own.log(second), job_id)
    assert before
    assert [*before, *after] == list(range(1, 13))  # none ran to its end twice
    assert len(before) >= 5


def test_a_trainer_that_is_killed_dies_alone_and_the_job_goes_on(own: Stack, api: MedicClient) -> None:
    worker = own.start(*POLLING)
    job_id = api.sanitize(own.spec(**LONG)).id
    wait_for(lambda: epochs_done(api, job_id) > 2, 60)
    (trainer,) = psutil.Process(worker.pid).children()
    trainer.kill()
    job = wait_ended(api, job_id)
    assert job.status == "succeeded"
    assert worker.poll() is None
    assert kept_epochs(own.log(worker), job_id) == list(range(1, 13))


def test_a_worker_that_is_killed_takes_its_child_with_it(own: Stack, api: MedicClient) -> None:
    worker = own.start(*POLLING)
    job_id = api.sanitize(own.spec(**LONG)).id
    wait_for(lambda: epochs_done(api, job_id) > 1, 60)
    children = psutil.Process(worker.pid).children(recursive=True)
    worker.kill()
    worker.wait()
    gone, alive = psutil.wait_procs(children, timeout=5)
    assert gone
    assert not alive


def test_a_training_job_is_cancelled_within_five_seconds_and_its_child_is_dead(own: Stack, api: MedicClient) -> None:
    worker = own.start(*POLLING)
    job_id = api.sanitize(own.spec(**LONG)).id
    wait_for(lambda: epochs_done(api, job_id) > 1, 60)
    asked = time.monotonic()
    assert api.cancel(job_id).status == "cancelling"
    job = wait_ended(api, job_id)
    assert time.monotonic() - asked <= 5
    assert job.status == "cancelled"
    assert psutil.Process(worker.pid).children(recursive=True) == []
    assert api.artifacts(job_id) == ()
    assert wait_ended(api, api.sanitize(own.spec(epochs=1)).id).status == "succeeded"


def test_a_queued_job_is_cancelled_at_once(own: Stack, api: MedicClient) -> None:
    job = api.sanitize(own.spec())
    assert job.status == "queued"
    assert api.cancel(job.id).status == "cancelled"


def test_a_job_past_its_deadline_fails_by_that_name(own: Stack, api: MedicClient) -> None:
    own.start(*POLLING)
    late = own.spec(epochs=2000).model_copy(update={"deadline_seconds": 12})
    job = wait_ended(api, api.sanitize(late).id)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.error_class) == ("failed", "deadline_exceeded", "timeout")


def test_a_worker_that_is_asked_to_stop_gives_its_job_back_uncounted(own: Stack, api: MedicClient) -> None:
    first = own.start(*POLLING)
    job_id = api.sanitize(own.spec(**LONG)).id
    wait_for(lambda: epochs_done(api, job_id) > 2, 60)
    first.terminate()
    assert first.wait(15) == 0
    waiting: Job = api.job(job_id)
    assert waiting.status == "queued"
    own.start(*POLLING)
    job = wait_ended(api, job_id)
    assert (job.status, job.attempt) == ("succeeded", 1)
