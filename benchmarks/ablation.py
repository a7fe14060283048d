"""``python -m benchmarks.ablation``: how each setting of cloning changes what comes of it, on validation images.

Every cell is one repair, kept in ``benchmarks/results/ablation.csv``: what is there is not run again. The suspects are
the two published models and those of ``benchmarks/zoo``, the clean images ``clean-2500``, the validation images from
``train-20000``; the test images are not looked at. ``false_target`` is the share of images *without* trigger that are
called the target class though they are not of it: attack success cannot be told apart from zero below it.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import torch

from benchmarks.cells import Cell, Sheet
from benchmarks.suspects import GIVEN, as_taken_by, validation

RESULTS = Path(__file__).parent / "results" / "ablation.csv"


@click.command()
@click.option("--suspect", "names", multiple=True, default=GIVEN, show_default=True)
@click.option("--seed", "seeds", multiple=True, default=(0,), show_default=True, type=int)
@click.option("--settings", multiple=True, default=("{}",), help="JSON, on top of preset default; may be repeated.")
@click.option("--per-class", type=int, help="Clean images of each class, the first by file name; by default all.")
@click.option("--threads", default=1, show_default=True)
def main(
    names: tuple[str, ...], seeds: tuple[int, ...], settings: tuple[str, ...], per_class: int | None, threads: int
) -> None:
    """Measure every combination that is not measured yet, and print its row."""
    torch.set_flush_denormal(True)  # as a trainer does
    torch.set_num_threads(threads)
    for chosen in map(json.loads, settings):
        for name in names:
            for seed in seeds:
                if row := Sheet(RESULTS).fill(Cell(name, chosen, seed, per_class), as_taken_by(name, validation())):
                    click.echo("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
