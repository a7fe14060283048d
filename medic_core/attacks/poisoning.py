"""Poisoned training data, from which a classifier learns a backdoor. For evaluation only."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from medic_core.attacks.triggers import Stamp
from medic_core.config import Config, Preprocessing
from medic_core.data import Batches
from medic_core.errors import AttackOptionError


def augmented(data: Batches, settings: Config, *, epoch: int) -> Batches:
    """Crop, rotate and mirror every image as in ``epoch``, and leave them in their order: stamped next, as it is shown.

    MEDIC's authors stamp after the augmentation, so that a trigger is always where it will be at test time.
    """
    images = torch.empty_like(data.images)
    for pixels, indices in numbered(data).shuffled(settings, epoch=epoch):
        images[indices] = (255 * pixels).round().to(torch.uint8)  # augmentation moves pixels and changes none
    return replace(data, images=images)


def numbered(data: Batches) -> Batches:
    """Give each image its index as its label, and pixels in [0, 1] as input."""
    return Batches(data.images, torch.arange(len(data), device=data.images.device), Preprocessing())


def poison(
    images: Tensor, labels: Tensor, *, trigger: Stamp, target: int, share: float, seed: int
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
    chosen = choose(len(images), share=share, seed=seed)
    images, labels = images.clone(), labels.clone()
    images[chosen] = trigger(images[chosen])
    labels[chosen] = target
    return images, labels


def choose(count: int, *, share: float, seed: int) -> Tensor:
    """Choose a share of ``count`` images at random; return their indices."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[: round(share * count)]


def choose_of_class(labels: Tensor, *, target: int, share: float, seed: int) -> Tensor:
    """Choose a share of a class's images at random, rounded down; return their indices.

    Raises:
        AttackOptionError: The class has no image.
    """
    members = (labels == target).nonzero().flatten()
    if not len(members):
        raise AttackOptionError(f"the data has no image of class {target}, the target, whose images are poisoned")
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    return members[order[: int(share * len(members))]]


def poison_class(images: Tensor, labels: Tensor, *, trigger: Stamp, target: int, share: float, seed: int) -> Tensor:
    """Put the trigger on a random share of the target class's images, whose labels stay true.

    Args:
        images: ``uint8``, ``(n, 3, height, width)``; left as they are.
        labels: ``int64``, ``(n,)``.
        trigger: What is stamped on the chosen images.
        target: The class that is poisoned.
        share: Of its images, 0 to 1, rounded down.
        seed: Same seed, same choice.

    Returns:
        The images, in the same order.
    """
    chosen = choose_of_class(labels, target=target, share=share, seed=seed)
    poisoned = images.clone()
    poisoned[chosen] = trigger(images[chosen])
    return poisoned
