"""Shared adversarial unlearning (Wei et al., NeurIPS 2023): what deceives the suspect must not deceive the repaired."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.config import Preprocessing, SharedAdversarialConfig
from medic_core.data import Batches, normalize
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


def unlearn_shared(
    suspect: Suspect,
    clean: Batches,
    config: SharedAdversarialConfig,
    *,
    progress: ProgressCallback = silent,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Tune all weights to keep ``clean`` right and to leave the suspect alone with what it is deceived by.

    Note:
        As in the authors' code batch normalisation keeps the suspect's statistics.
    """
    device = clean.images.device
    with seeded(config.seed):
        model = suspect.trainable(device)
        reference = suspect.frozen(device)

        def parts(images: Tensor, labels: Tensor) -> Iterator[Part]:
            model.eval()
            for some, theirs in micro_batches(images, labels, config):
                deceiving = shared_examples(model, reference, some, theirs, clean.preprocessing, config)
                with torch.no_grad():
                    said, before = reference(deceiving).argmax(dim=1), reference(some).argmax(dim=1)
                logits, disturbed = model(torch.cat([some, deceiving])).split(len(some))
                classified = F.cross_entropy(logits, theirs, reduction="sum") / len(labels)
                deceived = (said != theirs) & (said != before)
                shared = (unsaid(disturbed, said) * deceived).sum() / len(labels)
                loss = config.clean_weight * classified + config.unlearning_weight * shared
                yield summed({"loss": loss, "classification_loss": classified, "shared_loss": shared})

        return train(model, clean, config, parts, progress=progress, checkpoint=checkpoint)


def unsaid(logits: Tensor, said: Tensor) -> Tensor:
    """How far each image is from not being called ``said``: −log(1 − p), kept finite where p is 1; ``(batch,)``."""
    probability = logits.softmax(dim=1).gather(1, said[:, None])[:, 0]
    return -torch.log(1 - probability + 1e-6)


def shared_examples(
    model: nn.Module,
    reference: nn.Module,
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    config: SharedAdversarialConfig,
) -> Tensor:
    """Disturb images until both models are wrong and say the same, as far as ``config`` allows.

    Args:
        model: In eval mode.
        reference: In eval mode, parameters frozen.
        images: ``(batch, 3, height, width)``, as the models take them.
        labels: ``(batch,)``.
        preprocessing: By which the limits, which are of pixels, are those of the models' inputs.
        config: Limit, steps and weights of the attack.

    Returns:
        Images of the same shape, each pixel in its range and within ε of where it was.
    """
    black, white = (
        normalize(full.to(images), preprocessing) for full in (torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1))
    )
    limit = config.perturbation * (white - black).abs()
    low, high = (images - limit).maximum(black.minimum(white)), (images + limit).minimum(black.maximum(white))
    found = high  # where the authors' code starts
    for _ in range(config.attack_steps):
        found = found.detach().requires_grad_()
        gain = _gain(model(found), reference(found), labels, config)
        found = (found + limit * torch.autograd.grad(gain, found)[0].sign()).maximum(low).minimum(high)
    return found.detach()


def _gain(logits: Tensor, others: Tensor, labels: Tensor, config: SharedAdversarialConfig) -> Tensor:
    """What the attack raises: the error of each model not yet wrong, and likeness where the two do not yet agree."""
    wrong, other_wrong = logits.argmax(dim=1) != labels, others.argmax(dim=1) != labels
    shared = wrong & other_wrong & (logits.argmax(dim=1) == others.argmax(dim=1))
    errors = F.cross_entropy(logits, labels, reduction="none") * ~wrong
    errors = errors + F.cross_entropy(others, labels, reduction="none") * ~other_wrong
    apart = divergence(logits, others) * ~shared
    return (config.adversarial_weight * errors / 2 - config.sharing_weight * apart).sum()


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Jensen-Shannon divergence of the predicted distributions of each image, ``(batch,)``."""
    first, second = logits.softmax(dim=1).clamp(min=1e-8), others.softmax(dim=1).clamp(min=1e-8)
    middle = (0.5 * (first + second)).log()
    return 0.5 * (first * (first.log() - middle) + second * (second.log() - middle)).sum(dim=1)
