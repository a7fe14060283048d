"""Neural attention distillation (Li et al., ICLR 2021): the suspect learns to attend where a fine-tuned copy does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import KINDS, Call, Layers, Recorded, calls_of, is_map, record_outputs, select_layers
from medic_core.config import AttentionDistillationConfig
from medic_core.data import Batches
from medic_core.errors import UnsupportedArchitectureError
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

SHARES = (0.5, 1.0, 1.0)
"""Of β at the last three resolutions: 500, 1000 and 1000 in the paper."""


def distill_attention(
    suspect: Suspect,
    clean: Batches,
    config: AttentionDistillationConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Fine-tune a teacher, then let the suspect learn the labels and the teacher's attention.

    Raises:
        UnsupportedArchitectureError: There are no feature maps at two resolutions.
    """
    device = clean.images.device
    with seeded(config.seed):
        epochs = config.teacher_epochs + config.epochs
        stages = Stages(clean, epochs=epochs, progress=progress, checkpoint=checkpoint)
        teacher, student = suspect.trainable(device), suspect.trainable(device)
        images, _ = next(clean.in_order(batch_size=2))
        names = stage_ends(student.eval(), images)
        layers = select_layers(student, names, authors=(), images=images)
        tuning = replace(config, epochs=config.teacher_epochs)
        teacher = stages.train(teacher, tuning, classification(teacher, config)).requires_grad_(requires_grad=False)
        return stages.train(student, config, _attending(teacher, student, names, layers, config))


def _attending(
    teacher: nn.Module,
    student: nn.Module,
    names: Sequence[str],
    layers: Layers,
    config: AttentionDistillationConfig,
) -> Parts:
    weights = dict(zip(names, (config.attention_weight * share for share in SHARES[-len(names) :]), strict=True))

    def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
        for some, theirs in micro_batches(images, labels, config):
            with torch.no_grad(), record_outputs(teacher, layers) as taught:
                teacher(some)
            with record_outputs(student, layers) as learnt:
                classified = F.cross_entropy(student(some), theirs, reduction="sum") / len(labels)
            distances = [
                weight * attention_distance(_active(taught[name]), _active(learnt[name]))
                for name, weight in weights.items()
            ]
            attention = torch.stack(distances).sum() * len(some) / len(labels)
            losses = {"classification_loss": classified, "attention_loss": attention}
            yield summed({"loss": classified + attention, **losses})

    return parts


def _active(record: Recorded) -> Tensor:
    return record.output if record.rectified is None else record.rectified


def attention_map(features: Tensor) -> Tensor:
    """Sum the squares of all channels at each position and bring each image's map to length 1.

    Args:
        features: ``(batch, channels, height, width)``.

    Returns:
        ``(batch, height * width)``.
    """
    return F.normalize(features.square().sum(dim=1).flatten(1), dim=1)


def attention_distance(taught: Tensor, learnt: Tensor) -> Tensor:
    """Mean square of the difference of attention maps, over images and positions.

    Note:
        The paper writes a norm; its authors' code takes this, and with it their weights.
    """
    return F.mse_loss(attention_map(learnt), attention_map(taught))


def stage_ends(model: nn.Module, images: Tensor) -> list[str]:
    """Name the modules whose outputs are the last feature maps at the last three resolutions, in order.

    Of the modules with convolutions in them, that of the outermost level with a map of that resolution, and there the
    last. In a residual network they are the groups of blocks.

    Args:
        model: In eval mode.
        images: A small batch, as the model takes it.

    Raises:
        UnsupportedArchitectureError: There are fewer than two resolutions, not counting single positions.
    """
    ends: dict[tuple[int, ...], Call] = {}
    for call in calls_of(model, images):
        if call.name and call.output is not None and _is_map(call, images):
            size = tuple(call.output.shape[2:])
            if size not in ends or call.name.count(".") <= ends[size].name.count("."):
                ends[size] = call
    if len(ends) < 2:
        raise UnsupportedArchitectureError(
            "attention_distillation compares feature maps at up to three resolutions, and this architecture has fewer"
            f" than two at {images.shape[2]}×{images.shape[3]} pixels: use fine_tune or medic instead"
        )
    sizes = sorted(ends, key=lambda size: -size[0] * size[1])[-len(SHARES) :]
    return [ends[size].name for size in sizes]


def _is_map(call: Call, images: Tensor) -> bool:
    """Whether a convolution is in the module, and its output is a map."""
    if call.output is None or not is_map(call.output.shape, images.shape):
        return False
    return any(isinstance(module, KINDS["convolution"]) for module in call.module.modules())
