"""Sweeping goes on for as long as its process lives."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import redis
from sqlalchemy.exc import ProgrammingError

from benchmarks.servers import RunningRedis
from jobs.artifacts import open_artifacts
from jobs.claims import SweepResult
from jobs.errors import DatabaseUnavailableError
from jobs.queue import CeleryQueue
from jobs.settings import Settings
from jobs.store import open_store
from jobs.sweeper import sweep_forever, sweep_jobs
from tests.jobs.samples import mine, spec_for

ERRORS = [
    DatabaseUnavailableError("away"),
    OSError("Input/output error"),
    ProgrammingError("SELECT", {}, Exception("unforeseen")),
]


@pytest.mark.parametrize("error", ERRORS, ids=type)
def test_a_sweep_that_fails_is_said_and_is_not_the_last(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(data_dir=tmp_path, sweep_seconds=0.001)
    store = open_store(settings)
    stopping = threading.Event()
    left = [error]

    def sweep() -> SweepResult:
        if left:
            raise left.pop()
        stopping.set()
        return SweepResult()

    monkeypatch.setattr(store, "sweep", sweep)
    sweep_forever(store, open_artifacts(settings), None, settings, stopping)
    assert stopping.is_set()
    assert "sweep put off" in caplog.text
    store.close()


def test_jobs_that_wait_for_long_do_not_fill_the_broker_and_a_lost_message_is_made_up_for(
    tmp_path: Path, running_redis: RunningRedis
) -> None:
    store, queue = open_store(Settings(data_dir=tmp_path)), CeleryQueue(running_redis.url)
    made = [mine(store).create(spec_for(store)).id for _ in range(3)]
    for job_id in made:
        queue.announce(job_id)
    for _ in range(3):
        sweep_jobs(store, queue, announce_again_seconds=0)
    assert queue.waiting() == len(made)
    with redis.Redis.from_url(running_redis.url) as client:
        client.lpop("medic")
    time.sleep(0.002)  # of what was announced in this very millisecond no message is missed
    for _ in range(3):
        sweep_jobs(store, queue, announce_again_seconds=0)
    assert len(made) <= queue.waiting() < 2 * len(made)
    store.close()
