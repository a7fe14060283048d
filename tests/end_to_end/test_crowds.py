"""Many at once, in processes of their own: one request makes one job, and every job runs and ends once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from threading import Barrier
from time import sleep

import httpx
import pytest

from benchmarks.load.service import STAND_IN_POLLING
from benchmarks.servers import empty_database
from benchmarks.stack import KEY, Stack, stack, wait_ended, wait_for
from jobs.models import DataSpec, JobId, JobSpec, ModelSpec
from medic_client.client import MedicClient
from medic_client.errors import MedicApiError
from tests.api.harness import problem

SENDERS, KEYS, JOBS = 50, 5, 20
SWEEPER = ("-m", "worker.sweep")

Start = Callable[..., Stack]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as services:
        yield lambda **settings: services.enter_context(stack(tmp_path / "service", tmp_path, **settings))


def uploaded(client: MedicClient, folder: Path) -> JobSpec:
    """The spec of a job whose files nobody will read."""
    for purpose in ("model", "clean"):
        (folder / purpose).write_text(purpose)
    return JobSpec(
        model=ModelSpec(file_id=client.upload(folder / "model", "model").id, architecture="medic/resnet8"),
        clean_data=DataSpec(file_id=client.upload(folder / "clean", "clean").id),
    )


def send(client: httpx.Client, spec: JobSpec, key: str, together: Barrier) -> httpx.Response:
    """Post a job under an Idempotency-Key, and again for as long as another request under it is not answered."""
    together.wait()
    while True:
        answer = client.post("/v1/jobs", json=spec.model_dump(mode="json"), headers={"Idempotency-Key": key})
        if answer.status_code != 409:
            return answer
        problem(answer, 409, "request_in_flight")
        sleep(0.05)


@pytest.mark.parametrize(("database", "apis"), [("postgresql", 2), ("sqlite", 1)])
def test_fifty_at_once_under_one_key_make_one_job(
    database: str, apis: int, start: Start, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    named = {"MEDIC_DATABASE_URL": empty_database(request.getfixturevalue("postgresql_url"))}
    service = start(**(named if database == "postgresql" else {}))
    with ExitStack() as opened, ThreadPoolExecutor(SENDERS) as pool:
        urls = [service.url() for _ in range(apis)]
        client = opened.enter_context(MedicClient(urls[0], KEY))
        authorized = {"Authorization": f"Bearer {KEY}"}
        senders = [opened.enter_context(httpx.Client(base_url=url, headers=authorized, timeout=60)) for url in urls]
        spec, made = uploaded(client, tmp_path), set()
        for key in map(str, range(KEYS)):
            together, turns = Barrier(SENDERS), cycle(senders)
            sent = [pool.submit(send, next(turns), spec, key, together) for _ in range(SENDERS)]
            answers = [future.result() for future in sent]
            assert {answer.status_code for answer in answers} == {202}
            assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
            (job_id,) = {answer.json()["id"] for answer in answers}
            made.add(job_id)
        assert {job.id for job in client.jobs().jobs} == made
        assert len(made) == KEYS


def test_four_workers_and_two_sweepers_run_and_end_every_job_once(
    postgresql_url: str, start: Start, tmp_path: Path
) -> None:
    service = start(MEDIC_DATABASE_URL=empty_database(postgresql_url), MEDIC_LEASE_SECONDS="60")  # nobody goes silent
    workers = [service.start(*STAND_IN_POLLING) for _ in range(4)]
    helpers = [*workers, *(service.start(*SWEEPER) for _ in range(2))]
    with service.api() as client, service.api() as other:
        spec = uploaded(client, tmp_path)
        hasty = spec.model_copy(update={"deadline_seconds": 1})
        for worker in workers:
            wait_for(lambda worker=worker: "worker ready" in service.log(worker), 60)
        ids = [
            each.create_job(hasty if number % 4 == 1 else spec).id
            for number, each in zip(range(JOBS), cycle([client, other]), strict=False)
        ]
        cancelled_waiting = sum(is_cancelled_at_once(other, job_id) for job_id in ids[3::4])
        jobs = [wait_ended(client, job_id) for job_id in ids]
        assert {len(client.artifacts(job.id)) for job in jobs if job.status == "succeeded"} == {1}
    service.end()  # what is in the logs by now is all
    logs = "\n".join(map(service.log, helpers))
    claimed = Counter(re.findall(r"job_id=(job_\w+)\b.*: job claimed", logs))
    ended = Counter(re.findall(r"job_id=(job_\w+)\b.*: job let go of: (?:succeeded|failed|cancelled)", logs))
    assert set(claimed.values()) == {1}
    assert ended == claimed
    swept = sum(int(count) for count in re.findall(r"deadline_exceeded=(\d+)", logs))
    assert len(ended) + cancelled_waiting + swept == JOBS


def is_cancelled_at_once(client: MedicClient, job_id: JobId) -> bool:
    """Ask for a job's cancel; a running one is ended by its worker, and one that has ended is left alone."""
    try:
        return client.cancel(job_id).status == "cancelled"
    except MedicApiError as error:
        if error.problem["code"] != "job_finished":
            raise
        return False
