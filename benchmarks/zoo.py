"""``python -m benchmarks.zoo NAME``: train a model that ``benchmarks/zoo`` keeps, by its recipe.

Names and recipes stand in ``benchmarks.suspects.RECIPES``; ``docs/attacks.md`` says where their settings come from.
WRN-16-1 on ``train-20000``; ``heldout`` on what is left of it without the validation images of ``benchmarks.suspects``,
so that it tells what a repair costs on images that the model has not seen; ``signs-…`` are ResNet-34 on drawn road
signs. Beside the weights, ``zoo.json`` keeps the recipe and what came of it. The committed weights are of seed 0 and
one thread; another processor, or another number of threads, may give others, and that is said. Cells that were
measured on other weights of that name count no more.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import click
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.cells import figures_of
from benchmarks.machine import keep_among
from benchmarks.suspects import (
    RECIPES,
    architecture_of,
    digest,
    digest_of,
    half_of,
    index,
    pattern_of,
    target_of,
    training_images,
    triggered,
    unseen_images,
    weights_of,
)
from medic_core.attacks.training import Backdoored, train_backdoored


def train(name: str, seed: int) -> Backdoored:
    """Train the model called ``name``."""
    return train_backdoored(RECIPES[name], architecture_of(name), training_images(name), seed=seed)


def save(name: str, trained: Backdoored) -> None:
    """Keep the weights, and the pattern where one was learned."""
    save_file({key: value.contiguous() for key, value in trained.model.state_dict().items()}, weights_of(name))
    if trained.pattern is not None:
        Image.fromarray(trained.pattern.permute(1, 2, 0).contiguous().numpy()).save(pattern_of(name))


def measure(name: str, trained: Backdoored) -> dict[str, Any]:
    """Measure on the test images; ``triggered_n`` counts those whose true class is not the target."""
    shown, target = unseen_images(name), target_of(name)
    attacked = triggered(name, shown)
    figures = figures_of(trained.model, shown, attacked, target=target, half=half_of(name))
    return {
        "accuracy": round(figures["accuracy"], 4),
        "n": len(shown),
        "attack_success": round(figures["attack_success"], 4),
        "triggered_n": int((attacked.labels != target).sum()),
    }


@click.command()
@click.argument("name", type=click.Choice(sorted(RECIPES)))
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(name: str, seed: int, threads: int) -> None:
    """Train, print accuracy and attack success on the test images, and keep the weights."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    trained = train(name, seed)
    seconds = round(time.perf_counter() - began)
    save(name, trained)
    kept = digest_of(name)
    entry = {
        "name": name,
        "architecture": architecture_of(name).name,
        "recipe": asdict(RECIPES[name]),
        "seed": seed,
        "sha256": digest(weights_of(name)),
        **measure(name, trained),
        "seconds": seconds,
        "threads": threads,
    }
    keep_among(index(), entry, ["name"])
    if kept not in ("", entry["sha256"]):
        click.echo(f"not the weights that were kept, {kept}: what was measured on those counts no more")
    click.echo(f"{name}: accuracy {entry['accuracy']:.1%}, attack success {entry['attack_success']:.1%}, {seconds} s")


if __name__ == "__main__":
    main()
