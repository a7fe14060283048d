"""Every end of a child becomes a named outcome, and no trouble of disk or database becomes a lost job."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy.exc import ProgrammingError

from jobs.artifacts import FolderStore
from jobs.claims import CheckpointRecord, Claim, Outcome, Released
from jobs.database import open_engine
from jobs.errors import DatabaseUnavailableError, StorageFullError
from jobs.models import DataSpec, Job, JobSpec, ModelSpec
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.tenant import Upload
from tests.jobs.samples import SUCCESS, mine
from worker import __main__ as polling
from worker import run as running
from worker import supervise
from worker.children import NO_ROOM_STATUS, Ended, Watch
from worker.run import run
from worker.supervise import Supervisor
from worker.task import (
    CHECKPOINT_FILE,
    INTAKE_FILE,
    MOST_FOUND_BYTES,
    RESULT_FILE,
    TASK_FILE,
    Advanced,
    Checkpointed,
    Event,
    InputFindings,
    Intake,
    Result,
    Task,
)

WELL = Ended("ended", 0)

LOOK = """
import sys
from pathlib import Path
from worker.task import Intake, left_by_child
print([left_by_child(Path(name), Intake) for name in sys.argv[1:]])
"""


class House:
    """A real store and real artifacts with one queued job; children are what a test says."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(data_dir=folder, lease_seconds=60)
        self.jobs = JobStore(open_engine(self.settings))
        self.artifacts = FolderStore(folder / "blobs")
        self.stopping = threading.Event()
        self.supervisor = Supervisor(self.jobs, self.artifacts, self.settings, self.stopping)
        ids = {purpose: self._file(purpose) for purpose in ("model", "clean")}
        spec = JobSpec(
            model=ModelSpec(file_id=ids["model"], architecture="medic/resnet20"),
            clean_data=DataSpec(file_id=ids["clean"]),
        )
        self.job_id = mine(self.jobs).create(spec).id

    def _file(self, purpose: Any) -> Any:
        blob = self.artifacts.put_bytes(purpose.encode())
        return mine(self.jobs).add_file(Upload(blob.sha256, blob.size, purpose, "f")).id

    def run(self, times: int = 1) -> Job:
        for _ in range(times):
            run(self.job_id, jobs=self.jobs, supervise=self.supervisor)
        return mine(self.jobs).get(self.job_id)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(supervise, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(running, "RETRY_SECONDS", 0.01)
    made = House(tmp_path)
    yield made
    made.jobs.close()


def children(
    monkeypatch: pytest.MonkeyPatch,
    *,
    intake: Ended = WELL,
    trainer: Ended = WELL,
    events: tuple[Event, ...] = (),
    result: Result | None = None,
    left: Mapping[str, bytes] = MappingProxyType({}),
) -> list[str]:
    """Stand in for the two children, which leave in a file what ``left`` says; returns the list of those started."""
    started: list[str] = []

    def run_child(module: str, task_dir: Path, *, on_event: Callable[[Event], None] | None, **_: Any) -> Ended:
        started.append(module)
        if module == "worker.intake":
            assert on_event is None
            findings = {"model": InputFindings(format="torch"), "clean": InputFindings(format="zip", samples=9)}
            intake_found = Intake(class_names=("a", "b"), num_classes=2, inputs=findings)
            (task_dir / INTAKE_FILE).parent.mkdir()
            (task_dir / INTAKE_FILE).write_bytes(left.get(INTAKE_FILE, intake_found.model_dump_json().encode()))
            return intake
        assert on_event is not None
        for event in events:
            if isinstance(event, Checkpointed):
                (task_dir / CHECKPOINT_FILE).write_bytes(f"state {event.epoch}".encode())
            on_event(event)
            assert not (task_dir / CHECKPOINT_FILE).exists()
        (task_dir / RESULT_FILE).write_bytes(left.get(RESULT_FILE, (result or Result()).model_dump_json().encode()))
        return trainer

    monkeypatch.setattr(supervise, "run_child", run_child)
    return started


def task_given(house: House, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Run the job until it has a child, and return the task of that."""
    given: list[Task] = []

    def run_child(_module: str, task_dir: Path, **_: Any) -> Ended:
        given.append(Task.model_validate_json((task_dir / TASK_FILE).read_bytes()))
        return Ended("stopped", -signal.SIGKILL)

    monkeypatch.setattr(supervise, "run_child", run_child)
    house.run()
    (task,) = given
    return task


ENDS = [
    ({"intake": Ended("ended", 1)}, "internal_error", 1),
    ({"intake": Ended("ended", -signal.SIGSEGV)}, "intake_killed", 2),
    ({"intake": Ended("ended", -signal.SIGXCPU)}, "intake_timeout", 1),
    ({"intake": Ended("stalled", -signal.SIGKILL)}, "intake_timeout", 1),
    ({"intake": Ended("ended", NO_ROOM_STATUS)}, "storage_full", 2),
    ({"trainer": Ended("ended", 1)}, "internal_error", 1),
    ({"trainer": Ended("ended", -signal.SIGKILL)}, "trainer_killed", 2),
    ({"trainer": Ended("ended", -(signal.SIGRTMIN + 1))}, "trainer_killed", 2),  # which has no name
    ({"trainer": Ended("stalled", -signal.SIGKILL)}, "stalled", 2),
    ({"trainer": Ended("deadline", -signal.SIGKILL)}, "deadline_exceeded", 1),
    ({"trainer": Ended("ended", NO_ROOM_STATUS)}, "storage_full", 2),
    ({"trainer": Ended("unintelligible", -signal.SIGKILL)}, "internal_error", 1),
    ({"left": {INTAKE_FILE: b"[]"}}, "internal_error", 1),
    ({"left": {INTAKE_FILE: b" " * (MOST_FOUND_BYTES + 1)}}, "internal_error", 1),
    ({"left": {RESULT_FILE: b""}}, "internal_error", 1),
    ({}, "internal_error", 1),  # a result without summary and failure
]


@pytest.mark.parametrize(("ends", "code", "attempts"), ENDS)
def test_every_end_of_a_child_has_its_code_and_only_what_may_pass_is_tried_again(
    ends: dict[str, Any], code: str, attempts: int, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    children(monkeypatch, **ends)
    job = house.run(times=3)
    assert (job.status, job.attempt) == ("failed", attempts)
    assert job.error is not None
    assert job.error.code == code
    assert list((house.settings.data_dir / "work").iterdir()) == []


def test_a_worker_that_has_to_end_gives_the_job_back_uncounted(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    children(monkeypatch, trainer=Ended("stopped", -signal.SIGKILL))
    job = house.run(times=3)
    assert (job.status, job.attempt) == ("queued", 0)


def test_of_a_lost_lease_nothing_is_written(house: House) -> None:
    run(house.job_id, jobs=house.jobs, supervise=lambda _: None)
    assert mine(house.jobs).get(house.job_id).status == "running"


def test_the_log_says_what_became_of_a_job_not_what_its_worker_had_in_mind(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    def too_late(_: Claim) -> Outcome:
        mine(house.jobs).request_cancel(house.job_id)
        return SUCCESS

    with caplog.at_level(logging.INFO, logger="worker.run"):
        run(house.job_id, jobs=house.jobs, supervise=too_late)
    assert caplog.messages[-1] == "job let go of: cancelled"


def test_a_job_announced_twice_is_run_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    started = children(monkeypatch, trainer=Ended("ended", 1))
    house.run(times=2)
    assert started == ["worker.intake", "worker.trainer"]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "storage_full"),
        (OSError(errno.EIO, "Input/output error"), "storage_unavailable"),
        (StorageFullError("no room"), "storage_full"),
    ],
)
def test_trouble_with_the_disk_is_a_named_failure_and_the_worker_lives(
    error: Exception, code: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Ended:
        raise error

    monkeypatch.setattr(supervise, "run_child", fail)
    job = house.run(times=2)
    assert job.error is not None
    assert (job.status, job.error.code, job.error.retryable) == ("failed", code, True)


def test_a_work_folder_that_cannot_be_made_is_a_named_failure(house: House) -> None:
    (house.settings.data_dir / "work").write_text("in the way")
    job = house.run(times=2)
    assert job.error is not None
    assert job.error.code == "storage_unavailable"


@pytest.mark.parametrize("role", ["model", "clean"])
def test_input_bytes_that_changed_on_disk_are_never_used(
    role: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = children(monkeypatch)
    claimed = mine(house.jobs).get(house.job_id)
    sha256 = claimed.model.sha256 if role == "model" else claimed.clean_data.sha256
    house.artifacts.path(sha256).write_bytes(b"something else")
    job = house.run()
    assert job.error is not None
    assert job.error.code == "input_missing"
    assert started == []


@pytest.mark.parametrize(
    "harm", [lambda blob: blob.write_bytes(b"something else"), Path.unlink], ids=["damage", "loss"]
)
def test_a_checkpoint_that_is_lost_costs_its_epochs_and_not_the_job(
    harm: Callable[[Path], object], house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    claim = house.jobs.claim(house.job_id)
    assert claim is not None
    blob = house.artifacts.put_bytes(b"state")
    house.jobs.save_checkpoint(claim, CheckpointRecord(blob.sha256, 7))
    house.jobs.finish(claim, Released())
    path = house.artifacts.path(blob.sha256)
    assert task_given(house, monkeypatch).checkpoint == path
    harm(path)
    assert task_given(house, monkeypatch).checkpoint is None
    assert "epoch 7 is lost" in caplog.text


def test_intake_may_compute_as_long_as_it_may_take(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.supervisor = replace(house.supervisor, settings=house.settings.model_copy(update={"intake_seconds": 7200.5}))
    assert task_given(house, monkeypatch).limits.cpu_seconds == 7201


def test_what_a_child_left_is_neither_waited_for_nor_followed(tmp_path: Path) -> None:
    pipe, link, socket, folder, real = (tmp_path / name for name in ("pipe", "link", "socket", "folder", "real"))
    os.mkfifo(pipe)
    os.mknod(socket, stat.S_IFSOCK | 0o600)
    folder.mkdir()
    real.write_text(Intake().model_dump_json())
    link.symlink_to(real)
    looking = [sys.executable, "-c", LOOK, *map(str, (pipe, link, socket, folder, tmp_path / "none"))]
    ended = subprocess.run(looking, capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.stderr) == (f"{[None] * 5}\n", "")
    assert supervise.left_by_child(real, Intake) == Intake()


AWAY = DatabaseUnavailableError("away")


def failing(real: Callable[..., Any], times: int, error: Exception = AWAY) -> Callable[..., Any]:
    """``real``, but not at first."""
    left = [times]

    def call(*args: Any, **settings: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return real(*args, **settings)

    return call


def test_a_job_leaves_one_checkpoint_to_collect_from_however_many_it_made(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = tuple(Checkpointed(epoch=epoch) for epoch in (1, 2, 3))
    children(monkeypatch, events=events, trainer=Ended("stopped", -signal.SIGKILL))
    house.run()
    assert house.artifacts.collect(house.jobs.live_digests, older_than_seconds=3600) == 2
    claim = house.jobs.claim(house.job_id)
    assert claim is not None
    assert claim.checkpoint is not None
    assert house.artifacts.path(claim.checkpoint.sha256).read_bytes() == b"state 3"


@pytest.mark.parametrize("method", ["advance", "inspected", "save_checkpoint", "finish"])
def test_a_database_that_is_away_for_a_moment_costs_no_attempt(
    method: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = supervise.failure("nan_loss", "user", "as planned")
    events = (Advanced(phase="clone"), Checkpointed(epoch=1))
    children(monkeypatch, events=events, result=Result(failure=failure))
    monkeypatch.setattr(house.jobs, method, failing(getattr(house.jobs, method), 3))
    job = house.run()
    assert job.error is not None
    assert (job.status, job.error.code, job.attempt) == ("failed", "nan_loss", 1)


@pytest.mark.parametrize("error", [AWAY, ProgrammingError("UPDATE", {}, Exception("unforeseen"))], ids=type)
def test_a_beat_that_fails_is_not_the_last(error: Exception, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.supervisor = replace(house.supervisor, settings=house.settings.model_copy(update={"lease_seconds": 0.06}))
    monkeypatch.setattr(house.jobs, "beat", failing(house.jobs.beat, 1, error))
    heard = []

    def run_child(*_: Any, watch: Watch, **__: Any) -> Ended:
        mine(house.jobs).request_cancel(house.job_id)
        heard.append(watch.cancelled.wait(10))
        return Ended("cancelled", -signal.SIGKILL)

    monkeypatch.setattr(supervise, "run_child", run_child)
    assert house.run().status == "cancelled"
    assert heard == [True]


def test_folders_of_dead_attempts_at_any_job_go_with_the_next_and_those_of_living_ones_stay(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    children(monkeypatch)
    own = house.jobs.claim(house.job_id)
    assert own is not None
    other = mine(house.jobs).create(own.spec)
    work = house.settings.data_dir / "work"
    dead, alive = work / f"job_{'0' * 32}-3", work / f"{own.job_id}-{own.token}"
    for folder in (dead, work / f"{own.job_id}-{own.token - 1}", alive):
        folder.mkdir(parents=True)
        (folder / "task.json").touch()
    run(other.id, jobs=house.jobs, supervise=house.supervisor)
    assert list(work.iterdir()) == [alive]


def test_folders_of_dead_attempts_are_left_while_the_database_is_away(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    children(monkeypatch)
    left = house.settings.data_dir / "work" / f"job_{'0' * 32}-3"
    left.mkdir(parents=True)
    monkeypatch.setattr(house.jobs, "live_attempts", failing(house.jobs.live_attempts, times=1))
    assert house.run().attempt == 1
    assert left.exists()


def test_an_unforeseen_error_in_one_job_does_not_end_the_worker_that_polls(
    house: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    house.supervisor = replace(house.supervisor, settings=house.settings.model_copy(update={"poll_seconds": 0.001}))
    tries: list[str] = []

    def unforeseen(job_id: str, **_: Any) -> None:
        tries.append(job_id)
        if len(tries) == 2:
            house.stopping.set()
        raise RuntimeError("unforeseen")

    monkeypatch.setattr(polling, "run", unforeseen)
    polling.poll(house.supervisor)
    assert tries == [house.job_id] * 2
    assert "RuntimeError: unforeseen" in caplog.text
