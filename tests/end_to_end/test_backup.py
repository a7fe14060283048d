"""What is restored from a backup of a running service goes on as if nothing had been."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from benchmarks.stack import POLLING, Stack, digests, kill_tree, stack, wait_ended, wait_for
from jobs.models import Job, JobId
from medic_client.client import MedicClient


def medic(service: Stack, *arguments: str) -> str:
    command = [sys.executable, "-m", "medic_client.main", *arguments]
    ended = subprocess.run(command, env=service.environment(), capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


def share_cloned(client: MedicClient, job_id: JobId) -> float:
    job = client.job(job_id)
    return job.progress.fraction if job.phase == "clone" and job.progress else 0


@pytest.mark.timeout(900)
def test_the_three_kinds_of_jobs_survive_the_loss_of_the_data_folder(inputs: Path, tmp_path: Path) -> None:
    data, copy = tmp_path / "service" / "data", tmp_path / "copy"
    long = {"epochs": 12, "batch_size": 8}
    with stack(tmp_path / "service", inputs, MEDIC_API_KEY="") as service:
        key = medic(service, "keys", "create")
        with service.api(key) as client:
            worker = service.start(*POLLING)
            finished = wait_ended(client, client.sanitize(service.spec(epochs=1)).id)
            running = client.sanitize(service.spec(**long)).id
            queued = client.sanitize(service.spec(**long)).id
            wait_for(lambda: share_cloned(client, running) > 0.1, 200)
            for child in psutil.Process(worker.pid).children():
                child.suspend()  # so that it is running still, however long the backup takes
            medic(service, "backup", str(copy))
            made = digests(client, finished)
            assert (client.job(running).status, client.job(queued).status) == ("running", "queued")
        for process in service.processes:
            kill_tree(process)
        shutil.rmtree(data)
        shutil.copytree(copy, data)
        with service.api(key) as client:
            service.start(*POLLING)
            assert client.job(finished.id) == finished
            assert digests(client, finished) == made
            for artifact in client.artifacts(finished.id):
                assert client.download(finished.id, artifact, tmp_path).stat().st_size == artifact.bytes
            ends: list[Job] = [wait_ended(client, job_id, 400) for job_id in (running, queued)]
            assert [(job.status, job.attempt) for job in ends] == [("succeeded", 2), ("succeeded", 1)]
            assert digests(client, ends[0]) == digests(client, ends[1])
