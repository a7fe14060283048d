"""Celery on a real Redis: the same job, the same bytes; and a broker that is away loses nothing."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.servers import RunningRedis, empty_database, free_port
from benchmarks.stack import CELERY, POLLING, digests, stack, wait_ended, wait_for
from jobs.models import JobSpec, Progress, Purpose
from medic_client.client import MedicClient
from tests.servers import redis_server

NOTHING = Progress(fraction=0, step=0, total_steps=1)


def test_a_job_runs_through_celery_and_postgresql_and_gives_what_the_embedded_default_gives(
    running_redis: RunningRedis, postgresql_url: str, inputs: Path, tmp_path: Path
) -> None:
    scaled = {"MEDIC_BROKER_URL": running_redis.url, "MEDIC_DATABASE_URL": empty_database(postgresql_url)}
    with stack(tmp_path / "embedded", inputs) as embedded, embedded.api() as client:
        embedded.start(*POLLING)
        expected = digests(client, wait_ended(client, client.sanitize(embedded.spec()).id))
    with stack(tmp_path / "celery", inputs, **scaled) as service, service.api() as client:
        worker = service.start(*CELERY)
        job = wait_ended(client, client.sanitize(service.spec()).id)
        assert job.status == "succeeded"
        assert digests(client, job) == expected
        weights = next(each for each in client.artifacts(job.id) if each.name == "model.safetensors")
        assert client.download(job.id, weights, tmp_path).stat().st_size == weights.bytes
        wait_for(lambda: "Task medic.run_job" in service.log(worker) and "succeeded in" in service.log(worker), 10)


def test_a_job_posted_while_redis_is_away_runs_when_it_is_back(inputs: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with stack(tmp_path / "service", inputs, MEDIC_BROKER_URL=url) as service, service.api() as client:
        spec = uploaded(client, service.spec(epochs=1))
        asked = time.monotonic()
        job = client.create_job(spec)
        assert time.monotonic() - asked <= 2
        assert job.status == "queued"
        with redis_server(port):
            service.start(*CELERY)
            assert wait_ended(client, job.id).status == "succeeded"


def test_a_redis_that_dies_and_comes_back_empty_loses_no_job(inputs: Path, tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    with stack(tmp_path / "service", inputs, MEDIC_BROKER_URL=url) as service, service.api() as client:
        with redis_server(port) as broker:
            service.start(*CELERY)
            assert wait_ended(client, client.sanitize(service.spec(epochs=1)).id).status == "succeeded"
            broker.kill()
        job = client.create_job(uploaded(client, service.spec(epochs=1)))
        with redis_server(port):
            assert wait_ended(client, job.id).status == "succeeded"


def uploaded(client: MedicClient, spec: JobSpec) -> JobSpec:
    """The spec with its local paths replaced by the ids of uploaded files."""
    fields: dict[str, Purpose] = {
        "model": "model",
        "clean_data": "clean",
        "test_data": "test",
        "triggered_data": "triggered",
    }
    parts = {
        field: getattr(spec, field).model_copy(
            update={"file_id": client.upload(Path(getattr(spec, field).file_id), purpose).id}
        )
        for field, purpose in fields.items()
    }
    return spec.model_copy(update=parts)


def test_a_celery_worker_that_is_asked_to_stop_gives_its_job_back_uncounted(
    running_redis: RunningRedis, inputs: Path, tmp_path: Path
) -> None:
    with stack(tmp_path / "celery", inputs, MEDIC_BROKER_URL=running_redis.url) as service, service.api() as client:
        worker = service.start(*CELERY)
        job_id = client.sanitize(service.spec(epochs=40, batch_size=4)).id
        wait_for(lambda: (client.job(job_id).progress or NOTHING).fraction > 0.1, 60)
        worker.terminate()
        assert worker.wait(20) == 0
        assert client.job(job_id).status == "queued"
        service.start(*CELERY)
        job = wait_ended(client, job_id)
        assert (job.status, job.attempt) == ("succeeded", 1)
