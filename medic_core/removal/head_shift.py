"""Feature shift tuning (Min et al., NeurIPS 2023): a new head, pushed away from the old one, moves the features."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import calls_of
from medic_core.config import HeadShiftConfig
from medic_core.data import Batches
from medic_core.errors import UnsupportedArchitectureError
from medic_core.removal.training import (
    Checkpoint,
    Part,
    ProgressCallback,
    micro_batches,
    seeded,
    silent,
    summed,
    train,
)
from medic_core.suspect import Suspect


def shift_features(
    suspect: Suspect,
    clean: Batches,
    config: HeadShiftConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Draw the head anew, and tune all weights while its own point away from where they did.

    Raises:
        UnsupportedArchitectureError: The logits do not come from a linear layer.
    """
    with seeded(config.seed):
        model = suspect.trainable(clean.images.device)
        head = find_head(model.eval(), next(clean.in_order(batch_size=2))[0])
        original = head.weight.detach().clone()
        head.reset_parameters()

        def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
            for some, theirs in micro_batches(images, labels, config):
                classified = F.cross_entropy(model(some), theirs, reduction="sum") / len(labels)
                alike = (head.weight * original).sum() * len(some) / len(labels)
                losses = {"classification_loss": classified, "likeness": alike}
                yield summed({"loss": classified + config.shift_weight * alike, **losses})

        @torch.no_grad()
        def keep_norm() -> None:
            head.weight.mul_(original.norm() / head.weight.norm())

        return train(model, clean, config, parts, after_step=keep_norm, progress=progress, checkpoint=checkpoint)


def find_head(model: nn.Module, images: Tensor) -> nn.Linear:
    """Find the linear layer whose output is the logits.

    Args:
        model: In eval mode.
        images: A small batch, as the model takes it.

    Raises:
        UnsupportedArchitectureError: There is none.
    """
    calls = calls_of(model, images)
    for call in calls:
        if isinstance(call.module, nn.Linear) and call.output is calls[-1].output:
            return call.module
    raise UnsupportedArchitectureError(
        "head_shift draws the linear layer anew that puts out the logits, and here no linear layer does: use fine_tune"
        " or medic instead"
    )
