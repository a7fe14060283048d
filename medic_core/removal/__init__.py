"""Backdoor removal. One call, one contract, one file a method."""

from __future__ import annotations

from typing import assert_never

from torch import nn

from medic_core.config import AutoConfig, MedicConfig, RemovalConfig, ScratchConfig
from medic_core.data import Batches
from medic_core.errors import DataTooSmallError
from medic_core.removal.auto import clone_at_best_temperature
from medic_core.removal.medic import clone_by_importance
from medic_core.removal.scratch import train_from_scratch
from medic_core.removal.training import Checkpoint, Progress, ProgressCallback, silent
from medic_core.suspect import Suspect

__all__ = ["Checkpoint", "Progress", "ProgressCallback", "Suspect", "remove_backdoor", "silent"]


def remove_backdoor(
    suspect: Suspect,
    clean: Batches,
    config: RemovalConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Return a sanitized copy of ``suspect``, by the method that ``config`` belongs to.

    Every method keeps this contract: a new model in eval mode, on the device of ``clean``; the suspect, the caller's
    random state and the disk untouched; the same seed gives the same weights (on a CPU to the bit); no test data and
    no trigger anywhere near.

    Args:
        suspect: The model and the constructor that it came from.
        clean: Clean labelled images.
        config: Of one removal method.
        progress: Called after every optimiser step.
        checkpoint: Keeps the state after every epoch; a state found in it is taken up.

    Raises:
        MedicError: An expected failure, with every reason.
    """
    if len(clean) < 2:
        raise DataTooSmallError(f"{len(clean)} clean images; at least 2 are needed to train")
    match config:
        case MedicConfig():
            return clone_by_importance(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case AutoConfig():
            return clone_at_best_temperature(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case ScratchConfig():
            return train_from_scratch(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case _:
            assert_never(config)
