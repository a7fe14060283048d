"""Poisoned training data, from which a classifier learns a backdoor. For evaluation only."""

from __future__ import annotations

import torch
from torch import Tensor

from medic_core.attacks.triggers import Trigger


def poison(
    images: Tensor, labels: Tensor, *, trigger: Trigger, target: int, share: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Put the trigger and the target label on a random share of a dataset.

    Args:
        images: ``uint8``, ``(n, 3, height, width)``; left as they are.
        labels: ``int64``, ``(n,)``; left as they are.
        trigger: What is stamped on the chosen images.
        target: The class that they are then labelled with.
        share: Of all ``n`` images, 0 to 1; which ones, the seed decides, whatever their class.
        seed: Same seed, same choice.

    Returns:
        The poisoned images and labels, in the same order.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[: round(share * len(images))]
    images, labels = images.clone(), labels.clone()
    images[chosen] = trigger(images[chosen])
    labels[chosen] = target
    return images, labels
