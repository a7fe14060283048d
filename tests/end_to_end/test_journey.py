"""A backdoored model goes in over HTTP and comes out repaired."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.stack import Stack, digests, wait_ended, wait_for
from jobs.models import Denial, Diagnosis, Job, LayerState, Report
from medic_client.client import MedicClient
from medic_core.architectures import find_architecture
from medic_core.config import LipschitzPruningConfig
from worker.sandbox.probe import probe


def sandbox_here() -> dict[Denial, LayerState]:
    return {layer.name: layer.state for layer in probe()}


def sanitized(running: Stack, client: MedicClient, **settings: object) -> Job:
    job = wait_ended(client, client.sanitize(running.spec(**settings)).id)
    assert job.status == "succeeded", job.error
    return job


def test_the_record_holds_the_figures_the_digests_and_every_resolved_value(
    running: Stack, client: MedicClient, tmp_path: Path
) -> None:
    job = sanitized(running, client, epochs=4)
    assert job.summary is not None
    assert job.summary.attack_success_rate is not None
    assert job.summary.attack_success_rate.before > 0.9
    assert job.summary.attack_success_rate.n == 100  # 150 triggered images less those of the target class
    assert job.summary.clean_accuracy.before > 0.9
    assert job.summary.clean_accuracy.n == 150
    assert (job.model.num_classes, job.clean_data.samples, job.clean_data.format) == (3, 90, "imagefolder-zip")
    assert job.removal.epochs == 4
    assert (job.phase, job.progress, job.attempt) == (None, None, 1)

    artifacts = {each.name: each for each in client.artifacts(job.id)}
    assert artifacts.keys() == {"model.safetensors", "model.pth", "config.json", "metrics.jsonl", "report.json"}
    paths = {name: client.download(job.id, each, tmp_path) for name, each in artifacts.items()}

    report = Report.model_validate_json(paths["report.json"].read_bytes())
    assert report.summary == job.summary
    assert report.inputs["model"].sha256 == job.model.sha256
    assert report.outputs == {name: each.sha256 for name, each in artifacts.items() if name != "report.json"}
    assert len(report.cloned_layers) == 7
    assert sum(map(sum, report.after.confusion)) == 150
    assert {layer.name: layer.state for layer in report.environment.sandbox} == sandbox_here()
    assert report.environment.sandbox[0].state == "active"

    metrics = [json.loads(line) for line in paths["metrics.jsonl"].read_text().splitlines()]
    assert [each["epoch"] for each in metrics] == [1, 2, 3, 4]

    given = torch.load(running.inputs / "suspect.pth", weights_only=True)["state_dict"]
    twin = torch.load(paths["model.pth"], weights_only=True)
    assert twin.keys() == {"state_dict"}
    repaired = load_file(paths["model.safetensors"])
    assert repaired.keys() == given.keys() == twin["state_dict"].keys()
    for name, tensor in given.items():
        assert repaired[name].shape == tensor.shape
        assert repaired[name].dtype == tensor.dtype
        assert torch.equal(repaired[name], twin["state_dict"][name])

    config = json.loads(paths["config.json"].read_text())
    architecture = find_architecture(
        config["architecture"], num_classes=config["num_classes"], options=config["model_args"]
    )
    assert architecture.build().load_state_dict(repaired).missing_keys == []
    assert config["label_names"] == ["blue", "green", "red"]


def test_the_same_job_gives_the_same_bytes(running: Stack, client: MedicClient) -> None:
    first, second = (sanitized(running, client) for _ in range(2))
    assert digests(client, first) == digests(client, second)
    other = sanitized(running, client, seed=1)
    assert digests(client, other)["model.safetensors"] != digests(client, first)["model.safetensors"]


def test_without_test_data_a_fifth_is_held_out_and_the_report_says_what_is_missing(
    running: Stack, client: MedicClient, tmp_path: Path
) -> None:
    spec = running.spec().model_copy(update={"test_data": None, "triggered_data": None})
    job = wait_ended(client, client.sanitize(spec).id)
    assert job.summary is not None
    assert job.summary.clean_accuracy.n == 18
    assert job.summary.attack_success_rate is None
    found = {each.name: each for each in client.artifacts(job.id)}
    report = Report.model_validate_json(client.download(job.id, found["report.json"], tmp_path).read_bytes())
    assert (report.test_source, report.train_samples, report.test_samples) == ("holdout", 72, 18)
    assert len(report.missing_evidence) == 2


def test_without_any_image_the_method_that_needs_none_repairs(running: Stack, client: MedicClient) -> None:
    nothing = {"clean_data": None, "test_data": None, "triggered_data": None}
    spec = running.spec().model_copy(update={**nothing, "removal": LipschitzPruningConfig()})
    job = wait_ended(client, client.sanitize(spec).id)
    assert job.status == "succeeded", job.error
    assert job.summary is not None
    assert job.summary.clean_accuracy is None
    assert "model.safetensors" in {each.name for each in client.artifacts(job.id)}


def test_the_service_and_the_doctor_say_what_sandbox_the_worker_has(running: Stack, client: MedicClient) -> None:
    wait_for(lambda: client.ready().workers, 30)
    (worker,) = client.ready().workers
    assert worker.layers == sandbox_here()
    url = re.search(r"listening on (http://\S+)", "".join(map(running.log, running.processes)))
    assert url is not None
    environment = {**os.environ, "MEDIC_URL": url[1], "MEDIC_DATA_DIR": str(running.folder / "data")}
    command = [sys.executable, "-m", "medic_client.main", "doctor", "--json"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    checks = {check.name: check for check in Diagnosis.model_validate_json(ended.stdout).checks}
    assert "broken" not in {check.state for check in checks.values()}
    for name in ("python", "sqlite", "settings", "data folder", "database", "broker", "device", "sandbox", "service"):
        assert checks[name].state == "ok", checks[name]
    for name, state in worker.layers.items():
        assert checks[f"sandbox: {name}"].detail.startswith(state)
    assert checks["service's worker 1"].detail.startswith("sandbox auto: ")
