"""Clean accuracy, attack success and recovery, as counts with intervals; all of them read off confusion matrices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medic_core.data import Batches

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """``count`` of ``n`` images."""

    count: int
    n: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]; NaN of no images."""
        return self.count / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval."""
        return wilson_interval(self.count, self.n)


def wilson_interval(count: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of ``count`` successes in ``n`` trials; (0, 1) of none (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    share = count / n
    center = (share + _Z95**2 / (2 * n)) / (1 + _Z95**2 / n)
    half = _Z95 / (1 + _Z95**2 / n) * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n**2))
    low = 0.0 if count == 0 else max(0.0, center - half)  # exact at the ends, where rounding would leave 1e-18
    high = 1.0 if count == n else min(1.0, center + half)
    return low, high


@torch.no_grad()
def confusion_matrix(model: nn.Module, data: Batches, *, num_classes: int) -> Tensor:
    """Count predictions: entry ``(t, p)`` is how many images of true class ``t`` the model calls ``p``.

    Args:
        model: In eval mode, logits of shape ``(batch, num_classes)``.
        data: Not augmented, each image once.
        num_classes: Size of the matrix.

    Returns:
        ``(num_classes, num_classes)``, int64, on the CPU.
    """
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=data.images.device)
    for images, labels in data.in_order():
        predicted = model(images).argmax(dim=1)
        counts += torch.bincount(labels * num_classes + predicted, minlength=num_classes * num_classes)
    return counts.view(num_classes, num_classes).cpu()


def accuracy(confusion: Tensor) -> Share:
    """Share of images whose class is predicted right."""
    return Share(int(confusion.diagonal().sum()), int(confusion.sum()))


def accuracy_per_class(confusion: Tensor) -> list[Share]:
    """Accuracy among the images of each true class."""
    return [Share(int(row[label]), int(row.sum())) for label, row in enumerate(confusion)]


def attack_success(confusion: Tensor, *, target: int) -> Share:
    """Share of triggered images called the target class, among those whose true class is not the target.

    Args:
        confusion: Of triggered images, by true class.
        target: Index of the target class.
    """
    others = _without_row(confusion, target)
    return Share(int(others[:, target].sum()), int(others.sum()))


def recovery(confusion: Tensor, *, target: int) -> Share:
    """Share of triggered images called their true class, among those whose true class is not the target.

    Low attack success with low recovery is a damaged model, not a repaired one.
    """
    others = _without_row(confusion, target)
    right = int(confusion.diagonal().sum() - confusion[target, target])
    return Share(right, int(others.sum()))


def _without_row(confusion: Tensor, target: int) -> Tensor:
    return torch.cat([confusion[:target], confusion[target + 1 :]])


def defense_effectiveness_rating(
    *, accuracy_before: float, accuracy_after: float, success_before: float, success_after: float
) -> float:
    """Defense effectiveness rating in [0, 1]: what attack success fell, less what accuracy fell (Zhu et al., 2023).

    ``DER = [max(0, ASR_before − ASR_after) − max(0, ACC_before − ACC_after) + 1] / 2``
    """
    gained = max(0.0, success_before - success_after)
    lost = max(0.0, accuracy_before - accuracy_after)
    return (gained - lost + 1) / 2
