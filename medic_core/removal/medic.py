"""Importance-driven cloning, Algorithm 1 of the MEDIC paper (CVPR 2023)."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import Recorded, Statistics, layer_statistics, record_outputs, select_layers
from medic_core.architectures import authors_layers
from medic_core.config import MedicConfig
from medic_core.data import STATISTICS_EPOCH, Batches
from medic_core.importance import cloning_loss, neuron_importance
from medic_core.removal.training import Checkpoint, Losses, ProgressCallback, seeded, silent, train, without_dropout
from medic_core.suspect import Suspect


def clone_by_importance(
    suspect: Suspect,
    clean: Batches,
    config: MedicConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Train a fresh copy of ``suspect`` to repeat only what clean data makes important."""
    device = clean.images.device
    with seeded(config.seed):
        clone = suspect.architecture.build().to(device)  # never a reset copy: it could carry weights over
        teacher = copy.deepcopy(suspect.model).to(device).eval().requires_grad_(requires_grad=False)
        layers = layers_to_clone(suspect, clean, config)
        statistics = layer_statistics(
            teacher, layers, clean.shuffled(config, epoch=STATISTICS_EPOCH), kind=config.statistics
        )

        def losses(images: Tensor, labels: Tensor) -> Losses:
            taught, importance = _ask_teacher(teacher, images, labels, statistics, config)
            with record_outputs(clone, layers) as cloned:
                classification = F.cross_entropy(clone(images), labels)
            compared = {name: _compared(cloned[name], config) for name in layers}
            cloning = torch.stack(
                [
                    cloning_loss(taught[name], compared[name], importance[name], std=statistics[name].std)
                    for name in layers
                ]
            ).sum()
            mass = torch.stack([weights.flatten(1).sum(dim=1).mean() for weights in importance.values()]).mean()
            return {
                "loss": classification + config.cloning_weight * cloning,
                "classification_loss": classification,
                "cloning_loss": cloning,
                "importance_mass": mass,  # Σw shrinks as τ grows, and with it the effective λ
            }

        with without_dropout(clone):
            return train(clone, clean, config, losses, progress=progress, checkpoint=checkpoint)


def layers_to_clone(suspect: Suspect, clean: Batches, config: MedicConfig) -> tuple[str, ...]:
    """Resolve ``config.layers`` to names of the suspect's layers.

    Raises:
        LayerNotFoundError: Listing everything that was chosen and cannot be recorded.
    """
    images, _ = next(clean.in_order(batch_size=2))
    model = copy.deepcopy(suspect.model).to(images.device).eval().requires_grad_(requires_grad=False)
    authors = authors_layers(suspect.architecture, model)
    return select_layers(model, config.layers, authors=authors, images=images)


def _ask_teacher(
    teacher: nn.Module, images: Tensor, labels: Tensor, statistics: Mapping[str, Statistics], config: MedicConfig
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The outputs to compare with, and every neuron's importance (Eq. 2 to 4), by layer and detached."""
    with torch.enable_grad(), record_outputs(teacher, statistics) as records:
        logits = teacher(images.requires_grad_())  # the parameters are frozen, and the graph must start somewhere
        reduction = "mean" if config.gradient == "batch_mean" else "sum"
        loss = F.cross_entropy(logits, labels, reduction=reduction)
    read_at = [_compared(records[name], config) for name in statistics]
    gradients = torch.autograd.grad(loss, read_at, materialize_grads=True)
    taught: dict[str, Tensor] = {}
    importance: dict[str, Tensor] = {}
    for (name, layer), compared, gradient in zip(statistics.items(), read_at, gradients, strict=True):
        impact = gradient * layer.std
        activation = (records[name].output.detach() - layer.mean) / (layer.std + 1e-5)
        taught[name] = compared.detach()
        importance[name] = neuron_importance(
            activation,
            impact.abs() if config.impact == "magnitude" else impact,
            temperature=config.temperature,
        )
    return taught, importance


def _compared(record: Recorded, config: MedicConfig) -> Tensor:
    """The tensor of a layer that is compared, and at which the teacher's gradient is read.

    Note:
        In the authors' network a ReLU rewrites the recorded output in place, so that their code compares after it.
    """
    if config.compare == "after_relu" and record.rectified is not None:
        return record.rectified
    return record.output
