"""``python -m benchmarks.pruning``: what adversarial neuron pruning leaves of clean-label, by its threshold.

Masks are learned once, with the settings of MEDIC's authors, and cut at one threshold after another. Nothing is chosen
from it: it tells where the paper's figure lies. Kept in ``benchmarks/results/pruning.json``; measured on ``test-1000``.
"""

from __future__ import annotations

from typing import Any

import click
import torch

from benchmarks.cells import figures_of
from benchmarks.machine import write_json
from benchmarks.suspects import clean_images, suspect, target_of, triggered, unseen_images
from benchmarks.tables import METHODS, RESULTS
from medic_core.config import AdversarialPruningConfig
from medic_core.removal.adversarial_pruning import cut, learn_masks

FIGURES = RESULTS / "pruning.json"
THRESHOLDS = tuple(step / 20 for step in range(20))


def curve(name: str, seed: int) -> list[dict[str, float]]:
    """Measure one suspect at every threshold, in percent of images and of channels."""
    before, config = suspect(name), AdversarialPruningConfig(**METHODS["adversarial_pruning mild"], seed=seed)
    masked = learn_masks(before, clean_images(name), config)
    shown, masks = unseen_images(name), torch.cat(list(masked.masks))
    attacked = triggered(name, shown)
    points = []
    for threshold in THRESHOLDS:
        figures = figures_of(cut(before, masked, threshold), shown, attacked, target=target_of(name))
        shares = {key: figures[key] for key in ("accuracy", "attack_success", "recovery")}
        shares["cut"] = (masks <= threshold).double().mean().item()
        points.append({"threshold": threshold} | {key: round(100 * share, 2) for key, share in shares.items()})
    return points


@click.command()
@click.option("--suspect", "names", multiple=True, default=("cleanlabel",), show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=1, show_default=True)
def main(names: tuple[str, ...], seed: int, threads: int) -> None:
    """Measure, print, and keep what was measured."""
    torch.set_num_threads(threads)
    found: dict[str, Any] = {"seed": seed, "curves": {}}
    for name in names:
        found["curves"][name] = curve(name, seed)
        for point in found["curves"][name]:
            click.echo("  ".join(f"{key} {value:g}" for key, value in point.items()))
    write_json(FIGURES, found)


if __name__ == "__main__":
    main()
