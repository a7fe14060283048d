"""Fifty clients follow a job, each once a second, while it trains on one thread."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from benchmarks.hostile.honest import REMOVAL, make_honest, spec_of
from benchmarks.load.figures import Measured, Target, p99
from benchmarks.load.service import Service, running
from benchmarks.load.traffic import Answers, poll
from benchmarks.stack import wait_for
from jobs.models import JobId, JobSpec, Purpose
from medic_client.client import MedicClient
from medic_client.supervise import POLLING_WORKER

CLIENTS = 50
SECONDS = 120.0
MOST_MS = 250.0
MOST_TIMES_IDLE = 5.0
TRAINING_SECONDS = 300.0
"""Longest time until a job trains; most of it is intake's and the trainer's import of PyTorch."""


def measure(folder: Path, scale: float) -> Measured:
    """Poll a job that was cancelled, then one that trains: the same clients, service and number of requests."""
    with running(folder / "service", POLLING_WORKER) as service, service.client() as client:
        spec = _long_job(client, folder)
        ended = client.create_job(spec).id
        client.cancel(ended)
        *_, _ = client.watch(ended, timeout_seconds=TRAINING_SECONDS)
        idle = _polled(service, ended, SECONDS * scale)
        trains = client.create_job(spec).id
        wait_for(lambda: client.job(trains).phase == "clone", TRAINING_SECONDS)
        busy = _polled(service, trains, SECONDS * scale)
        still = client.job(trains).phase == "clone"
        client.cancel(trains)
    usual, under_load = p99(idle.seconds), p99(busy.seconds)
    return Measured(
        (
            Target("p99 while a job trains, ms", under_load, at_most=MOST_MS),
            Target("that over its idle value", under_load / usual, at_most=MOST_TIMES_IDLE),
            Target("answers other than 200", sum((idle.errors + busy.errors).values()), at_most=0),
            Target("the job trained all the time", still, at_least=1),
        ),
        {"clients": CLIENTS, "idle": idle.figures(), "training": busy.figures()},
    )


def _polled(service: Service, job_id: JobId, seconds: float) -> Answers:
    return asyncio.run(poll(service, f"/v1/jobs/{job_id}", clients=CLIENTS, seconds=seconds))


def _long_job(client: MedicClient, folder: Path) -> JobSpec:
    """Forty images of digits, and more epochs than anyone waits for."""
    ids: dict[Purpose, str] = {}
    for purpose, data in make_honest(folder / "flag", trained=True).files().items():
        (folder / purpose).write_bytes(data)
        ids[purpose] = client.upload(folder / purpose, purpose).id
    return spec_of(ids).model_copy(update={"removal": replace(REMOVAL, epochs=10_000)})
