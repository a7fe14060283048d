"""VGG for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.architectures.initialization import initialize

_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG11(nn.Module):
    """VGG-11 (Simonyan and Zisserman, 2015) for 32×32 pixels: its five stages, then two hidden linear layers of 512.

    Larger images are averaged to one position before the linear layers; at 32×32 there is only one.

    Args:
        normalized: Whether batch normalisation follows each convolution.
        num_classes: Number of logits.
        dropout: Probability, before each of the two hidden linear layers.
    """

    def __init__(self, *, normalized: bool, num_classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.features = nn.Sequential(*_features(normalized=normalized))
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(512, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)``."""
        features = F.adaptive_avg_pool2d(self.features(images), 1)
        return self.classifier(features.flatten(1))  # type: ignore[no-any-return]


def _features(*, normalized: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    inputs = 3
    for stage in _STAGES:
        for outputs in stage:
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1))
            if normalized:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return layers
