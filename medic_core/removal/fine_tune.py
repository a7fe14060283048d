"""Fine-tuning of all weights on the clean images."""

from __future__ import annotations

from torch import nn

from medic_core.config import FineTuneConfig
from medic_core.data import Batches
from medic_core.removal.training import Checkpoint, ProgressCallback, classification, seeded, silent, train
from medic_core.suspect import Suspect


def tune_all_weights(
    suspect: Suspect,
    clean: Batches,
    config: FineTuneConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Train on from the suspect's weights, on ``clean`` alone."""
    with seeded(config.seed):
        model = suspect.trainable(clean.images.device)
        parts = classification(model, config)
        return train(model, clean, config, parts, progress=progress, checkpoint=checkpoint)
