"""Distillation of the suspect's answers into a fresh network (Hinton et al., 2015)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.config import DistillConfig
from medic_core.data import Batches
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


def distill_answers(
    suspect: Suspect,
    clean: Batches,
    config: DistillConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Train an untrained network on the labels of ``clean`` and on what the suspect answers to it."""
    device, share = clean.images.device, config.distillation_weight
    with seeded(config.seed):
        student = suspect.architecture.build().to(device).to(memory_format=torch.channels_last)
        teacher = suspect.frozen(device)

        def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
            for some, theirs in micro_batches(images, labels, config):
                with torch.no_grad():
                    taught = teacher(some)
                learnt = student(some)
                classified = F.cross_entropy(learnt, theirs, reduction="sum") / len(labels)
                distilled = distillation_loss(taught, learnt, temperature=config.temperature) / len(labels)
                losses = {"classification_loss": classified, "distillation_loss": distilled}
                yield summed({"loss": share * distilled + (1 - share) * classified, **losses})

        return train(student, clean, config, parts, progress=progress, checkpoint=checkpoint)


def distillation_loss(taught: Tensor, learnt: Tensor, *, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the softened answers, summed over the batch.

    Times T², so that its gradients keep their size beside those of the labels whatever T is.

    Args:
        taught: Logits of the teacher, ``(batch, classes)``.
        learnt: Logits of the student, same shape.
        temperature: T, above 0; divides both.
    """
    soft = (taught / temperature).log_softmax(dim=1)
    return temperature**2 * F.kl_div((learnt / temperature).log_softmax(dim=1), soft, reduction="sum", log_target=True)
