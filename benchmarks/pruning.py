"""``python -m benchmarks.pruning``: why adversarial neuron pruning leaves another share here than in the paper.

MEDIC's authors do not run what was published: they take 160 steps instead of 2,000, do not bring the noise back to ε,
and hand on the network with its masks still on, and with the statistics of batch normalisation that it had while it was
disturbed. That is done here, and is no method of the service. Kept in ``benchmarks/results/pruning.json``; measured on
``test-1000``.
"""

from __future__ import annotations

from collections.abc import Mapping

import click
import torch
import torch.nn.functional as F

from benchmarks.cells import figures_of
from benchmarks.machine import write_figures
from benchmarks.suspects import GIVEN, clean_images, suspect, target_of, triggered, unseen_images
from benchmarks.tables import METHODS, RESULTS
from medic_core.config import AdversarialPruningConfig
from medic_core.data import Batches
from medic_core.removal.adversarial_pruning import MaskedChannels
from medic_core.suspect import Suspect

PASSES = 4
BATCH_SIZE = 64


def prune_as_authors(before: Suspect, clean: Batches, config: AdversarialPruningConfig) -> MaskedChannels:
    """Learn masks as the code of MEDIC's authors does, and leave them on; those of ``threshold`` and less become 0."""
    torch.manual_seed(config.seed)
    masked, limit = MaskedChannels(before.frozen()).train(), config.perturbation
    optimizer = torch.optim.SGD(masked.masks, lr=config.learning_rate, momentum=0.9)
    order = AdversarialPruningConfig(batch_size=BATCH_SIZE, seed=config.seed)
    for number in range(PASSES):
        for images, labels in clean.shuffled(order, epoch=number):
            noise = [(limit * (2 * torch.rand(2, len(mask)) - 1)).requires_grad_() for mask in masked.masks]
            up = torch.autograd.grad(F.cross_entropy(masked(images, [(at[0], at[1]) for at in noise]), labels), noise)
            worst = [at.detach() + limit * way.sign() for at, way in zip(noise, up, strict=True)]
            kept = F.cross_entropy(masked(images), labels)
            disturbed = F.cross_entropy(masked(images, [(at[0], at[1]) for at in worst]), labels)
            optimizer.zero_grad()
            torch.autograd.backward(config.clean_weight * kept + (1 - config.clean_weight) * disturbed)
            optimizer.step()
            masked.clamp()
    with torch.no_grad():
        for mask in masked.masks:
            mask.mul_(mask > config.threshold)
    return masked.eval()


def measure(name: str, seed: int) -> Mapping[str, str | float]:
    """Return a row, in percent."""
    config = AdversarialPruningConfig(**METHODS["adversarial_pruning mild"], seed=seed)
    pruned, shown = prune_as_authors(suspect(name), clean_images(name), config), unseen_images(name)
    figures = figures_of(pruned, shown, triggered(name, shown), target=target_of(name))
    shares = {key: round(100 * figures[key], 2) for key in ("accuracy", "attack_success", "recovery")}
    return {"suspect": name, "seed": seed, **shares}


@click.command()
@click.option("--suspect", "names", multiple=True, default=GIVEN, show_default=True)
@click.option("--seeds", default=5, show_default=True, help="How many, from 0.")
@click.option("--threads", default=1, show_default=True)
def main(names: tuple[str, ...], seeds: int, threads: int) -> None:
    """Measure, print, and keep what was measured."""
    torch.set_flush_denormal(True)  # as a trainer does
    torch.set_num_threads(threads)
    rows = []
    for name in names:
        for seed in range(seeds):
            rows.append(measure(name, seed))
            click.echo("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    write_figures(RESULTS / "pruning.json", {"rows": rows})


if __name__ == "__main__":
    main()
