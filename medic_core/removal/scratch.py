"""Training from scratch on the clean images: what can be had without looking at the suspect at all."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.config import ScratchConfig
from medic_core.data import Batches, cut_evenly
from medic_core.removal.training import Checkpoint, Part, ProgressCallback, seeded, silent, train
from medic_core.suspect import Suspect


def train_from_scratch(
    suspect: Suspect,
    clean: Batches,
    config: ScratchConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Train the suspect's architecture on ``clean`` alone."""
    with seeded(config.seed):
        model = suspect.architecture.build().to(clean.images.device)

        def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
            sizes = cut_evenly(len(labels), config.micro_batch_size or len(labels))
            for some, theirs in zip(torch.split(images, sizes), torch.split(labels, sizes), strict=True):
                loss = F.cross_entropy(model(some), theirs, reduction="sum") / len(labels)
                yield Part({"loss": loss}, roots=[loss], gradients=[None])

        return train(model, clean, config, parts, progress=progress, checkpoint=checkpoint)
