"""``python -m benchmarks.real``: published backdoored models, and a benign one, through the whole service.

Each goes the way of a user: ``medic sanitize`` starts the embedded service, uploads, follows and downloads. The result
is what the job reports, on ``test-1000``. Every result is kept in ``benchmarks/results/repairs.json``, one of each
suspect, preset, seed and number of clean images, and is a cell of the tables; ``benchmarks/results/real.json`` holds
the run without options.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.cells import Cell, Sheet
from benchmarks.machine import describe_machine, keep_among, without_settings, write_figures
from benchmarks.suspects import DATA, GIVEN, weights_of
from jobs.models import Job

RESULTS = Path(__file__).parent / "results"
SEED, PRESET = 0, "authors"

# accuracy and attack success in percent: what must be reported before, and for preset authors the bounds for after
EXPECTED: Mapping[str, Mapping[str, float]] = {
    "badnet": {"accuracy": 89.0, "attack_success": 100.0, "least_accuracy": 82.0, "most_attack_success": 6.0},
    "cleanlabel": {"accuracy": 88.2, "attack_success": 100.0, "least_accuracy": 82.5, "most_attack_success": 31.0},
}
PAPER: Mapping[str, str] = {"badnet": "84.2 / 3.6±0.6", "cleanlabel": "85.3 / 16.8±4.6"}


FIGURES: Mapping[str, str] = {
    "accuracy": "clean_accuracy",
    "attack_success": "attack_success_rate",
    "recovery": "recovery_accuracy",
}
"""Figures of ``benchmarks.cells``, and their names in a report."""


def clean_images(per_class: int | None, folder: Path) -> Path:
    """All of ``clean-2500``, or an archive of the first images of each class by file name."""
    everything = DATA / "cifar10" / "clean-2500.zip"
    if per_class is None:
        return everything
    fewer = folder / "clean.zip"
    seen: dict[str, int] = {}
    with zipfile.ZipFile(everything) as source, zipfile.ZipFile(fewer, "w") as target:
        for name in sorted(name for name in source.namelist() if name.endswith(".png")):
            label = Path(name).parent.name
            seen[label] = seen.get(label, 0) + 1
            if seen[label] <= per_class:
                target.writestr(name, source.read(name))
    return fewer


def run_one(attack: str, clean: Path, triggered: Path, folder: Path, settings: Mapping[str, str]) -> dict[str, Any]:
    """Repair one model by ``medic sanitize`` and return its figures."""
    out = folder / f"{attack}-{settings['seed']}"
    command = [
        *(sys.executable, "-m", "medic_client.main", "sanitize"),
        str(weights_of(attack)),
        *("--architecture", "medic/wide_resnet16_1"),
        *("--clean", str(clean)),
        *("--test", str(DATA / "cifar10" / "test-1000.zip")),
        *("--triggered", str(triggered), "--target", "dog"),
        *(part for key, value in settings.items() for part in ("--set", f"{key}={value}")),
        *("--out", str(out), "--json"),
    ]
    environment = {**without_settings(), "MEDIC_DATA_DIR": str(folder / "data")}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)  # noqa: S603 - our own module
    wall = time.monotonic() - began
    job = Job.model_validate_json(done.stdout)
    report = json.loads((out / "report.json").read_text())
    summary = json.loads(job.model_dump_json())["summary"]
    return {
        "attack": attack,
        "settings": dict(settings),
        "seed": job.removal.seed,
        "clean": report["train_samples"],
        "n": summary["clean_accuracy"]["n"],
        "n_triggered": summary["attack_success_rate"]["n"],
        "summary": summary,
        "wall_seconds": round(wall, 1),
        "seconds": report["seconds"],
        "environment": report["environment"],
        "removal": report["removal"],
        "model_sha256": report["outputs"]["model.safetensors"],
        "problems": problems(attack, settings["preset"], summary),
    }


def problems(attack: str, preset: str, summary: Mapping[str, Any]) -> list[str]:
    """Say what lies outside the expected bounds."""
    if attack not in EXPECTED:
        return []
    expected = EXPECTED[attack]
    accuracy, success = summary["clean_accuracy"], summary["attack_success_rate"]
    checks = {
        f"accuracy before is {accuracy['before']:.1%}": abs(100 * accuracy["before"] - expected["accuracy"]) < 0.05,
        f"attack success before is {success['before']:.1%}": 100 * success["before"] >= expected["attack_success"],
    }
    if preset == "authors":
        least, most = expected["least_accuracy"], expected["most_attack_success"]
        checks[f"accuracy after is {accuracy['after']:.1%}"] = 100 * accuracy["after"] >= least
        checks[f"attack success after is {success['after']:.1%}"] = 100 * success["after"] <= most
    return [problem for problem, holds in checks.items() if not holds]


def show(result: Mapping[str, Any]) -> str:
    """One line of the table."""
    summary = result["summary"]
    accuracy, success, right = (
        summary[each] for each in ("clean_accuracy", "attack_success_rate", "recovery_accuracy")
    )
    return (
        f"{result['attack']:<12}{result['seed']:>4}{result['clean']:>7}   "
        f"{100 * accuracy['before']:5.1f} / {100 * success['before']:5.1f} / {100 * right['before']:5.1f}   "
        f"{100 * accuracy['after']:5.1f} / {100 * success['after']:5.1f} / {100 * right['after']:5.1f}   "
        f"{PAPER.get(result['attack'], '–'):<16}{result['wall_seconds']:7.0f} s"
    )


def cell_of(result: Mapping[str, Any], per_class: int | None) -> Cell:
    """Return the cell that a result is of."""
    preset = result["settings"]["preset"]
    return Cell(result["attack"], {} if preset == "default" else {"preset": preset}, result["seed"], per_class)


def as_row(result: Mapping[str, Any], per_class: int | None) -> dict[str, Any]:
    """Return a result as a row of ``benchmarks.cells``; what its report lacks stays empty."""
    cell, summary = cell_of(result, per_class), result["summary"]
    shares = {figure: summary[name]["after"] for figure, name in FIGURES.items()}
    shares["der"] = summary["defense_effectiveness_rating"]
    return {
        **{"settings": json.dumps(dict(cell.settings)), "seed": cell.seed, **cell.columns()},
        **{"n": result["n"], "triggered_n": result["n_triggered"]},
        **{figure: f"{100 * share:.2f}" for figure, share in shares.items()},
        **{"epochs": result["removal"]["epochs"], "threads": result["environment"]["threads"]},
    }


def run_all(
    attacks: tuple[str, ...], seeds: tuple[int, ...], preset: str, per_class: int | None
) -> Iterator[dict[str, Any]]:
    """Repair every suspect with every seed."""
    with tempfile.TemporaryDirectory(prefix="medic-real-") as name:
        folder = Path(name)
        triggered, clean = folder / "triggered.zip", clean_images(per_class, folder)
        trigger = [sys.executable, "-m", "medic_client.main", "trigger", "--kind", "badnet"]
        given = ["--data", str(DATA / "cifar10" / "test-1000.zip"), "--out", str(triggered)]
        subprocess.run([*trigger, *given], check=True)  # noqa: S603 - our own module
        for seed in seeds:
            for attack in attacks:
                yield run_one(attack, clean, triggered, folder, {"preset": preset, "seed": str(seed)})


def keep_row(sheet: Sheet, result: Mapping[str, Any], per_class: int | None) -> None:
    """Keep a result as a row, unless there is one that says more."""
    kept = sheet.find(cell_of(result, per_class))
    if kept is None or not kept["seconds"]:
        sheet.keep(as_row(result, per_class))


@click.command()
@click.option("--seed", "seeds", multiple=True, default=(SEED,), show_default=True)
@click.option("--preset", default=PRESET, show_default=True)
@click.option("--only", type=click.Choice([*GIVEN, "benign"]), multiple=True, help="By default both published.")
@click.option("--per-class", type=int, help="Clean images of each class, the first by file name; by default all.")
def main(seeds: tuple[int, ...], preset: str, only: tuple[str, ...], per_class: int | None) -> None:
    """Repair models and print accuracy / attack success / recovery in percent, before, after, and the paper's."""
    click.echo(f"{'model':<12}{'seed':>4}{'clean':>7}   {'before':<24}{'after':<24}{'paper, after':<16}{'time':>9}")
    results = []
    for result in run_all(only or GIVEN, seeds, preset, per_class):
        click.echo(show(result))
        keep_among(RESULTS / "repairs.json", {**result, "machine": describe_machine()}, ("attack", "settings", "clean"))
        keep_row(Sheet(RESULTS / "cells.csv"), result, per_class)
        results.append(result)
    if (seeds, preset, only, per_class) == ((SEED,), PRESET, (), None):
        write_figures(RESULTS / "real.json", {"results": results})
    if found := [f"{result['attack']}: {problem}" for result in results for problem in result["problems"]]:
        raise click.ClickException("; ".join(found))


if __name__ == "__main__":
    main()
