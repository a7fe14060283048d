"""Training from scratch on the clean images: what can be had without looking at the suspect at all."""

from __future__ import annotations

from torch import nn

from medic_core.config import ScratchConfig
from medic_core.data import Batches
from medic_core.removal.training import Checkpoint, ProgressCallback, classification, seeded, silent, train
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
        parts = classification(model, config)
        return train(model, clean, config, parts, progress=progress, checkpoint=checkpoint)
