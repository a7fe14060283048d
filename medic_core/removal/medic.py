"""Importance-driven cloning, Algorithm 1 of the MEDIC paper (CVPR 2023)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import Layers, Recorded, layer_statistics, record_outputs, select_layers
from medic_core.architectures import authors_layers
from medic_core.config import MedicConfig
from medic_core.data import STATISTICS_EPOCH, Batches
from medic_core.importance import cloning_loss
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
    device, memory_format = clean.images.device, torch.channels_last  # the faster one on CPU and GPU
    with seeded(config.seed):
        clone = suspect.architecture.build()  # never a reset copy: it could carry weights over
        clone = clone.to(device).to(memory_format=memory_format)
        teacher = copy.deepcopy(suspect.model).eval().requires_grad_(requires_grad=False)
        teacher = teacher.to(device).to(memory_format=memory_format)
        layers = layers_to_clone(suspect, clean, config)
        statistics = layer_statistics(
            teacher, layers, clean.shuffled(config, epoch=STATISTICS_EPOCH), kind=config.statistics
        )

        def losses(images: Tensor, labels: Tensor) -> Losses:
            lessons = _ask_teacher(teacher, images, labels, layers, config)
            with record_outputs(clone, layers) as records:
                classification = F.cross_entropy(clone(images), labels)
            cloned = [_compared(records[name], config) for name in layers.names]
            parts = [
                cloning_loss(
                    *lesson,
                    answer.detach(),
                    statistics[name],
                    temperature=config.temperature,
                    magnitude=config.impact == "magnitude",
                    weight=config.cloning_weight,
                )
                for name, lesson, answer in zip(layers.names, lessons, cloned, strict=True)
            ]
            cloning = torch.stack([part.value for part in parts]).sum()
            values = {
                "loss": classification.detach() + config.cloning_weight * cloning,
                "classification_loss": classification.detach(),
                "cloning_loss": cloning,
                "importance_mass": torch.stack([part.mass for part in parts]).mean(),  # falls as τ grows: so does λ
            }
            return Losses(values, [classification, *cloned], [None, *(part.gradient for part in parts)])

        with without_dropout(clone):
            return train(clone, clean, config, losses, progress=progress, checkpoint=checkpoint)


def layers_to_clone(suspect: Suspect, clean: Batches, config: MedicConfig) -> Layers:
    """Resolve ``config.layers`` to layers of the suspect.

    Raises:
        LayerNotFoundError: Listing everything that was chosen and cannot be recorded.
    """
    images, _ = next(clean.in_order(batch_size=2))
    model = copy.deepcopy(suspect.model).to(images.device).eval().requires_grad_(requires_grad=False)
    authors = authors_layers(suspect.architecture, model)
    return select_layers(model, config.layers, authors=authors, images=images)


def _ask_teacher(
    teacher: nn.Module, images: Tensor, labels: Tensor, layers: Layers, config: MedicConfig
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """By layer: its output, the loss gradient where it is read, and what the clone's output is compared with."""
    with torch.enable_grad(), record_outputs(teacher, layers) as records:
        logits = teacher(images.detach().requires_grad_())  # parameters are frozen, and the graph must start somewhere
        reduction = "mean" if config.gradient == "batch_mean" else "sum"
        loss = F.cross_entropy(logits, labels, reduction=reduction)
    compared = [_compared(records[name], config) for name in layers.names]
    gradients = torch.autograd.grad(loss, compared, materialize_grads=True)
    return [
        (records[name].output.detach(), gradient, taught.detach())
        for name, gradient, taught in zip(layers.names, gradients, compared, strict=True)
    ]


def _compared(record: Recorded, config: MedicConfig) -> Tensor:
    """The tensor of a layer that is compared, and at which the teacher's gradient is read.

    Note:
        In the authors' network a ReLU rewrites the recorded output in place, so that their code compares after it.
    """
    if config.compare == "after_relu" and record.rectified is not None:
        return record.rectified
    return record.output
