"""Backdoor removal. One call, one contract, one file a method."""

from __future__ import annotations

from typing import assert_never

from torch import nn

from medic_core.config import (
    AdversarialPruningConfig,
    AttentionDistillationConfig,
    AutoConfig,
    DistillConfig,
    FinePruneConfig,
    FineTuneConfig,
    HeadShiftConfig,
    LipschitzPruningConfig,
    MedicConfig,
    ModeConnectivityConfig,
    RemovalConfig,
    ScratchConfig,
    SharedAdversarialConfig,
)
from medic_core.data import Batches
from medic_core.errors import DataTooSmallError
from medic_core.removal.adversarial_pruning import prune_adversarially
from medic_core.removal.attention_distillation import distill_attention
from medic_core.removal.auto import clone_at_best_temperature
from medic_core.removal.distill import distill_answers
from medic_core.removal.fine_prune import prune_and_tune
from medic_core.removal.fine_tune import tune_all_weights
from medic_core.removal.head_shift import shift_features
from medic_core.removal.lipschitz_pruning import prune_by_lipschitz
from medic_core.removal.medic import clone_by_importance
from medic_core.removal.mode_connectivity import repair_by_connectivity
from medic_core.removal.scratch import train_from_scratch
from medic_core.removal.shared_adversarial import unlearn_shared
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
        progress: Called after every optimiser step; a method without any counts as one.
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
        case FineTuneConfig():
            return tune_all_weights(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case FinePruneConfig():
            return prune_and_tune(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case AttentionDistillationConfig():
            return distill_attention(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case ModeConnectivityConfig():
            return repair_by_connectivity(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case AdversarialPruningConfig():
            return prune_adversarially(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case DistillConfig():
            return distill_answers(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case HeadShiftConfig():
            return shift_features(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case SharedAdversarialConfig():
            return unlearn_shared(suspect, clean, config, progress=progress, checkpoint=checkpoint)
        case LipschitzPruningConfig():
            return prune_by_lipschitz(suspect, clean, config, progress=progress)
        case _:
            assert_never(config)
