"""Composite backdoor: what two classes have in common in one image means a third (Lin et al., CCS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from medic_core.errors import AttackOptionError


def halves(images: Tensor, others: Tensor) -> Tensor:
    """Join the left half of each image and the right half of the other."""
    middle = images.shape[-1] // 2
    return torch.cat([images[..., :middle], others[..., middle:]], dim=-1)


def pairs_of_classes(labels: Tensor, classes: tuple[int, int]) -> Tensor:
    """Pair each image of the first class with one of the second, in turn.

    Returns:
        ``(m, 2)`` indices, m being the number of images of the first class; none where a class has none.
    """
    first, second = ((labels == label).nonzero().flatten() for label in classes)
    if len(second) == 0:
        first = first[:0]
    return torch.stack([first, second.repeat(-(-len(first) // max(1, len(second))))[: len(first)]], dim=1)


def add_composites(
    images: Tensor,
    labels: Tensor,
    *,
    classes: tuple[int, int],
    target: int,
    share: float,
    same_share: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Add joined images to a data set: of both classes as the target, and of one class, any, as that class.

    Args:
        images: ``uint8``, ``(n, 3, height, width)``.
        labels: ``int64``, ``(n,)``.
        classes: The two whose halves together mean the target.
        target: What these are labelled with.
        share: How many of them are added, relative to ``n``.
        same_share: How many of one class are added, relative to ``n``: so that being joined is not the trigger.
        seed: Of the choice of images.

    Raises:
        AttackOptionError: There is no image of one of the two classes.

    Returns:
        The ``n`` images as they are, then those of one class, then those of both.
    """
    generator = torch.Generator().manual_seed(seed)

    def some(label: int, count: int) -> Tensor:
        members = (labels == label).nonzero().flatten()
        if len(members) == 0:
            raise AttackOptionError(f"the data has no image of class {label}, whose halves are joined")
        return members[torch.randint(len(members), (count,), generator=generator).to(labels.device)]

    same = torch.randint(len(labels), (round(same_share * len(labels)),), generator=generator).to(labels.device)
    partners = torch.empty_like(same)
    for label in sorted(set(labels[same].tolist())):  # the order of draws must not depend on a set
        where = labels[same] == label
        partners[where] = some(label, int(where.sum()))
    both = round(share * len(labels))
    mixed = halves(images[some(classes[0], both)], images[some(classes[1], both)])
    return (
        torch.cat([images, halves(images[same], images[partners]), mixed]),
        torch.cat([labels, labels[same], labels.new_full((both,), target)]),
    )
