"""``python -m benchmarks.ablation``: how each setting of cloning changes what comes of it, on validation images.

Every cell is one repair, kept in ``benchmarks/results/ablation.csv``: what is there is not run again. The suspects are
the two published models and those of ``benchmarks/zoo``, the clean images ``clean-2500``, the validation images from
``train-20000``; the test images are not looked at. ``false_target`` is the share of images *without* trigger that are
called the target class though they are not of it: attack success cannot be told apart from zero below it.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from pydantic import TypeAdapter

from benchmarks.suspects import PUBLISHED, TARGET, first_per_class, images, suspect, triggered, validation
from medic_core.config import MedicConfig, expand_preset
from medic_core.evaluation import accuracy, attack_success, confusion_matrix, recovery
from medic_core.removal import remove_backdoor

RESULTS = Path(__file__).parent / "results" / "ablation.csv"
COLUMNS = ("suspect", "settings", "seed", "clean", "n", "accuracy", "attack_success", "false_target", "recovery")
CIRCUMSTANCES = ("epochs", "seconds", "resolved")


def measure(name: str, settings: Mapping[str, Any], seed: int, per_class: int | None) -> dict[str, Any]:
    """Repair one suspect with one choice of settings and measure the clone on validation images."""
    clean = images("clean-2500")
    if per_class:
        clean = first_per_class(clean, per_class)
    config = resolve(settings, seed)
    began = time.perf_counter()
    clone = remove_backdoor(suspect(name), clean, config)
    seconds = time.perf_counter() - began
    shown = validation()
    plain, attacked = (confusion_matrix(clone, data, num_classes=10) for data in (shown, triggered(name, shown)))
    figures = {
        "accuracy": accuracy(plain),
        "attack_success": attack_success(attacked, target=TARGET),
        "false_target": attack_success(plain, target=TARGET),
        "recovery": recovery(attacked, target=TARGET),
    }
    row = {"suspect": name, "settings": json.dumps(settings), "seed": seed, "clean": len(clean), "n": len(shown)}
    row |= {figure: f"{100 * share.value:.2f}" for figure, share in figures.items()}
    return row | {"epochs": clean.epochs(config), "seconds": f"{seconds:.0f}", "resolved": written(config)}


def resolve(settings: Mapping[str, Any], seed: int) -> MedicConfig:
    """Put settings on top of preset default."""
    return TypeAdapter(MedicConfig).validate_python(expand_preset({**settings, "seed": seed}))


def written(config: MedicConfig) -> str:
    """Every setting, so that a row still says what it measured when the default has changed."""
    return json.dumps(asdict(config), sort_keys=True)


def kept() -> list[dict[str, str]]:
    """Rows measured before."""
    if not RESULTS.exists():
        return []
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def keep(row: Mapping[str, Any]) -> None:
    """Add a row; other processes may do so at the same time."""
    with RESULTS.open("a", newline="") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        writer = csv.DictWriter(file, (*COLUMNS, *CIRCUMSTANCES))
        if os.fstat(file.fileno()).st_size == 0:
            writer.writeheader()
        writer.writerow(row)


@click.command()
@click.option("--suspect", "names", multiple=True, default=PUBLISHED, show_default=True)
@click.option("--seed", "seeds", multiple=True, default=(0,), show_default=True, type=int)
@click.option("--settings", multiple=True, default=("{}",), help="JSON, on top of preset default; may be repeated.")
@click.option("--per-class", type=int, help="Clean images of each class, the first by file name; by default all.")
@click.option("--threads", default=1, show_default=True)
def main(
    names: tuple[str, ...], seeds: tuple[int, ...], settings: tuple[str, ...], per_class: int | None, threads: int
) -> None:
    """Measure every combination that is not measured yet, and print its row."""
    torch.set_num_threads(threads)
    for chosen in map(json.loads, settings):
        for name in names:
            for seed in seeds:
                known = (name, written(resolve(chosen, seed)), str(10 * per_class if per_class else 2500))
                if any((row["suspect"], row["resolved"], row["clean"]) == known for row in kept()):
                    continue
                row = measure(name, chosen, seed, per_class)
                keep(row)
                click.echo("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
