"""``python -m benchmarks.real``: the two published backdoored models through the whole service, preset ``authors``.

Each goes the way of a user: ``medic sanitize`` starts the embedded service, uploads, follows and downloads. The result
is what the job reports, compared with the paper's; ``benchmarks/results/real.json`` keeps that of the default run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.machine import describe_machine
from jobs.models import Job

RESULTS = Path(__file__).parent / "results" / "real.json"
SEED, PRESET = 0, "authors"
DATA = Path(os.environ.get("MEDIC_TEST_DATA", "../shared/data"))

# accuracy and attack success in percent: what must be reported before, and the bounds for after
EXPECTED: Mapping[str, Mapping[str, float]] = {
    "badnet": {"accuracy": 89.0, "attack_success": 100.0, "least_accuracy": 82.0, "most_attack_success": 6.0},
    "cleanlabel": {"accuracy": 88.2, "attack_success": 100.0, "least_accuracy": 82.5, "most_attack_success": 31.0},
}
PAPER: Mapping[str, str] = {"badnet": "84.2 / 3.6±0.6", "cleanlabel": "85.3 / 16.8±4.6"}


def run_one(attack: str, triggered: Path, folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Repair one model by ``medic sanitize`` and return its figures."""
    command = [
        *(sys.executable, "-m", "medic_client.main", "sanitize"),
        str(DATA / "checkpoints" / f"{attack}-wrn16-1.pth.tar"),
        *("--architecture", "medic/wide_resnet16_1"),
        *("--clean", str(DATA / "cifar10" / "clean-2500.zip")),
        *("--test", str(DATA / "cifar10" / "test-1000.zip")),
        *("--triggered", str(triggered), "--target", "dog"),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
        *("--out", str(folder / attack), "--json"),
    ]
    environment = {**os.environ, "MEDIC_DATA_DIR": str(folder / "data")}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own module
    wall = time.monotonic() - began
    job = Job.model_validate_json(done.stdout)
    report = json.loads((folder / attack / "report.json").read_text())
    summary = json.loads(job.model_dump_json())["summary"]
    return {
        "attack": attack,
        "settings": dict(settings),
        "seed": job.removal.seed,
        "n": summary["clean_accuracy"]["n"],
        "n_triggered": summary["attack_success_rate"]["n"],
        "summary": summary,
        "wall_seconds": round(wall, 1),
        "seconds": report["seconds"],
        "environment": report["environment"],
        "model_sha256": report["outputs"]["model.safetensors"],
        "problems": problems(attack, summary),
    }


def problems(attack: str, summary: Mapping[str, Any]) -> list[str]:
    """Say what lies outside the expected bounds."""
    expected = EXPECTED[attack]
    accuracy, success = summary["clean_accuracy"], summary["attack_success_rate"]
    checks = {
        f"accuracy before is {accuracy['before']:.1%}": abs(100 * accuracy["before"] - expected["accuracy"]) < 0.05,
        f"attack success before is {success['before']:.1%}": 100 * success["before"] >= expected["attack_success"],
        f"accuracy after is {accuracy['after']:.1%}": 100 * accuracy["after"] >= expected["least_accuracy"],
        f"attack success after is {success['after']:.1%}": 100 * success["after"] <= expected["most_attack_success"],
    }
    return [problem for problem, holds in checks.items() if not holds]


def show(result: Mapping[str, Any]) -> str:
    """One line of the table."""
    summary = result["summary"]
    accuracy, success = summary["clean_accuracy"], summary["attack_success_rate"]
    return (
        f"{result['attack']:<12}{100 * accuracy['before']:5.1f} / {100 * success['before']:5.1f}   "
        f"{100 * accuracy['after']:5.1f} / {100 * success['after']:5.1f}   {PAPER[result['attack']]:<16}"
        f"{result['wall_seconds']:7.0f} s"
    )


@click.command()
@click.option("--seed", default=SEED, show_default=True)
@click.option("--preset", default=PRESET, show_default=True)
@click.option("--only", type=click.Choice(sorted(EXPECTED)), multiple=True, help="By default both.")
def main(seed: int, preset: str, only: tuple[str, ...]) -> None:
    """Repair the published models and print accuracy / attack success in percent, before, after, and the paper's."""
    settings = {"preset": preset, "seed": str(seed)}
    attacks = sorted(set(only) or EXPECTED)
    with tempfile.TemporaryDirectory(prefix="medic-real-") as name:
        folder = Path(name)
        triggered = folder / "triggered.zip"
        trigger = [sys.executable, "-m", "medic_client.main", "trigger", "--kind", "badnet"]
        given = ["--data", str(DATA / "cifar10" / "test-1000.zip"), "--out", str(triggered)]
        subprocess.run([*trigger, *given], check=True)  # noqa: S603 - our own module
        results = [run_one(attack, triggered, folder, settings) for attack in attacks]
    click.echo("Accuracy / attack success in percent.")
    click.echo(f"{'model':<12}{'before':<16}{'after':<16}{'paper, after':<16}{'time':>9}")
    for result in results:
        click.echo(show(result))
    if (seed, preset, attacks) == (SEED, PRESET, sorted(EXPECTED)):
        RESULTS.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=2) + "\n")
    if found := [f"{result['attack']}: {problem}" for result in results for problem in result["problems"]]:
        raise click.ClickException("; ".join(found))


if __name__ == "__main__":
    main()
