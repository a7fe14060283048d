"""Mode connectivity repair (Zhao et al., ICLR 2020): a model from the inside of a curve between two others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from medic_core.config import FineTuneConfig, ModeConnectivityConfig
from medic_core.data import STATISTICS_EPOCH, Batches
from medic_core.removal.stages import Stages
from medic_core.removal.training import (
    Checkpoint,
    Part,
    Parts,
    ProgressCallback,
    classification,
    micro_batches,
    seeded,
    silent,
    summed,
)
from medic_core.suspect import Suspect

Weights = Mapping[str, Tensor]


def repair_by_connectivity(
    suspect: Suspect,
    clean: Batches,
    config: ModeConnectivityConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Fine-tune a copy, bend a curve from it to the suspect, and take the model at ``config.curve_position``."""
    device = clean.images.device
    with seeded(config.seed):
        epochs = config.endpoint_epochs + config.epochs
        stages = Stages(clean, epochs=epochs, progress=progress, checkpoint=checkpoint)
        start, end, bend = (suspect.trainable(device) for _ in range(3))
        tuning = replace(
            config,
            epochs=config.endpoint_epochs,
            schedule=FineTuneConfig.schedule,
            learning_rate=FineTuneConfig.learning_rate,
        )
        stages.train(start, tuning, classification(start, config))
        ends = (dict(start.named_parameters()), dict(end.named_parameters()))
        with torch.no_grad():
            for name, weight in bend.named_parameters():
                weight.lerp_(ends[0][name], 0.5)
        stages.train(bend, config, _along(bend, ends, config))
        found = curve_point(ends[0], dict(bend.named_parameters()), ends[1], position=config.curve_position)
        with torch.no_grad():
            for name, weight in start.named_parameters():
                weight.copy_(found[name])
        return measure_normalizations(start, clean, config)


def curve_point(start: Weights, bend: Weights, end: Weights, *, position: float | Tensor) -> dict[str, Tensor]:
    """Return the weights at ``position`` in [0, 1] of the quadratic Bezier curve, through which gradients flow."""
    near, middle, far = (1 - position) ** 2, 2 * position * (1 - position), position**2
    return {name: near * start[name] + middle * bend[name] + far * end[name] for name in bend}


def _along(bend: nn.Module, ends: tuple[Weights, Weights], config: ModeConnectivityConfig) -> Parts:
    """Cross-entropy at a position drawn anew for each batch."""
    start, end = ({name: weight.detach() for name, weight in weights.items()} for weights in ends)

    def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
        position = torch.rand((), device=images.device)
        for some, theirs in micro_batches(images, labels, config):
            point = curve_point(start, dict(bend.named_parameters()), end, position=position)
            loss = F.cross_entropy(functional_call(bend, point, (some,)), theirs, reduction="sum") / len(labels)
            yield summed({"loss": loss})

    return parts


@torch.no_grad()
def measure_normalizations(model: nn.Module, clean: Batches, config: ModeConnectivityConfig) -> nn.Module:
    """Put the statistics of one pass over ``clean`` into the batch normalisations; those of the ends do not fit.

    Returns:
        ``model`` in eval mode.
    """
    norms = [module for module in model.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.train().momentum = None  # the mean of all batches
    for images, _ in clean.shuffled(config, epoch=STATISTICS_EPOCH):
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return model.eval()
