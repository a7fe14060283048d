"""``medic demo``: a backdoored classifier made on the spot, repaired through the service, and judged."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from jobs.models import DataSpec, File, Job, JobSpec, ModelSpec, Purpose, Summary, TriggeredSpec
from medic_client.display import comparison_table, console, download_all, follow, transfer_bars
from medic_client.errors import DemoFailedError, JobFailedError
from medic_client.service import DEFAULT_URL, Service

INPUTS: dict[Purpose, str] = {
    "model": "suspect.pth",
    "clean": "clean.zip",
    "test": "test.zip",
    "triggered": "triggered.zip",
}
LEAST_SUCCESS_BEFORE, MOST_SUCCESS_AFTER, MOST_ACCURACY_LOST = 0.90, 0.10, 0.03


def run_demo(service: Service, out: Path, *, as_json: bool) -> None:
    """Make the inputs, repair the classifier, train one from scratch beside it, and show all of it.

    Raises:
        DemoFailedError: The repair did not reach what the demo promises.
    """
    info = _make_inputs(out / "inputs")
    with transfer_bars() as sent:
        files = {
            purpose: service.client.upload(out / "inputs" / name, purpose, progress=sent)
            for purpose, name in INPUTS.items()
        }
    started = [
        (folder, service.client.create_job(_spec(info, files, removal=info[folder]))) for folder in ("medic", "scratch")
    ]
    repaired, scratch = (_finished(service, job, out / folder) for folder, job in started)
    _show(repaired, scratch, out, info, as_json=as_json)
    if shortfalls := shortfalls_of(_summary(repaired)):
        raise DemoFailedError("; ".join(shortfalls))


def _make_inputs(folder: Path) -> dict[str, Any]:
    arguments = ("-P", "-m", "worker.demo", str(folder))
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # waiting threads must not spin on shared cores
    ended = subprocess.run([sys.executable, *arguments], stdout=2, env=environment, check=False)  # noqa: S603 - our own
    if ended.returncode:
        raise DemoFailedError("the demo's inputs could not be made; what stopped it stands above")
    info: dict[str, Any] = json.loads((folder / "info.json").read_text())
    return info


def _spec(info: dict[str, Any], files: dict[Purpose, File], *, removal: dict[str, Any]) -> JobSpec:
    return JobSpec(
        model=ModelSpec(file_id=files["model"].id, architecture=info["architecture"]),
        clean_data=DataSpec(file_id=files["clean"].id),
        test_data=DataSpec(file_id=files["test"].id),
        triggered_data=TriggeredSpec(file_id=files["triggered"].id, target_class=info["target_class"]),
        removal=removal,
        metadata={"made_by": "medic-demo"},
    )


def _finished(service: Service, job: Job, folder: Path) -> Job:
    ended = follow(service, job.id)
    if ended.status != "succeeded":
        raise JobFailedError(ended)
    download_all(service.client, job.id, folder)
    return ended


def _summary(job: Job) -> Summary:
    if job.summary is None:
        raise DemoFailedError(f"{job.id} has no summary")
    return job.summary


def shortfalls_of(summary: Summary) -> list[str]:
    """Say in which points a repair stays behind what the demo promises."""
    accuracy, success = summary.clean_accuracy, summary.attack_success_rate
    if accuracy is None or success is None:
        return ["accuracy or attack success was not measured"]
    found = []
    if success.before < LEAST_SUCCESS_BEFORE:
        found.append(f"attack success starts at {success.before:.1%}, below {LEAST_SUCCESS_BEFORE:.0%}")
    if success.after > MOST_SUCCESS_AFTER:
        found.append(f"attack success ends at {success.after:.1%}, above {MOST_SUCCESS_AFTER:.0%}")
    if accuracy.before - accuracy.after > MOST_ACCURACY_LOST + 1e-9:  # 0.97 - 0.94 is a little more than 0.03
        found.append(f"accuracy falls from {accuracy.before:.1%} to {accuracy.after:.1%}, by more than 3 points")
    return found


def _show(repaired: Job, scratch: Job, out: Path, info: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(repaired.model_dump_json())
    screen = console(stderr=as_json)
    screen.print(comparison_table(_summary(repaired), _summary(scratch)))
    click.echo(f"\nThe repaired model, its report and metrics lie in {out / 'medic'}, ", err=as_json, nl=False)
    click.echo(f"the one trained from scratch in {out / 'scratch'}.", err=as_json)
    click.echo(f"\nThe same by hand, with `make serve` in another terminal:\n\n{curl_lines(out, info)}", err=as_json)


def curl_lines(out: Path, info: dict[str, Any]) -> str:
    """Return shell lines that upload the demo's inputs, start the job, wait for it and download the repaired model."""
    spec = {
        "model": {"file_id": "'$model'", "architecture": info["architecture"]},
        "clean_data": {"file_id": "'$clean'"},
        "test_data": {"file_id": "'$test'"},
        "triggered_data": {"file_id": "'$triggered'", "target_class": info["target_class"]},
        "removal": info["medic"],
    }
    inputs = {purpose: shlex.quote(str((out / "inputs" / name).absolute())) for purpose, name in INPUTS.items()}
    put = 'curl -sSf -H "$auth" -T {path} "$MEDIC_URL/v1/files?purpose={purpose}&filename={name}"'
    uploads = [
        f"{purpose}=$({put.format(path=inputs[purpose], purpose=purpose, name=name)} | grep -o 'file_[0-9a-z-]*')"
        for purpose, name in INPUTS.items()
    ]
    return "\n".join(
        [
            f"export MEDIC_URL={DEFAULT_URL} MEDIC_API_KEY=…  # the key that the service printed at its first start",
            'auth="Authorization: Bearer $MEDIC_API_KEY"',
            *uploads,
            'job=$(curl -sSf -H "$auth" -H "Content-Type: application/json" "$MEDIC_URL/v1/jobs" '
            f"-d '{json.dumps(spec)}' | grep -o 'job_[0-9a-z-]*' | head -n 1)",
            'until curl -sSf -H "$auth" "$MEDIC_URL/v1/jobs/$job" | grep -q \'"terminal": *true\'; do sleep 2; done',
            'curl -sSf -H "$auth" "$MEDIC_URL/v1/jobs/$job"',
            'curl -sSf -H "$auth" -o model.safetensors "$MEDIC_URL/v1/jobs/$job/artifacts/model.safetensors"',
        ]
    )
