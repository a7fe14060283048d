"""MobileNet for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.architectures.initialization import initialize

_STRIDES_AND_CHANNELS = (
    (1, 64),
    (2, 128),
    (1, 128),
    (2, 256),
    (1, 256),
    (2, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (1, 512),
    (2, 1024),
    (1, 1024),
)


class MobileNetV1(nn.Module):
    """MobileNet-V1 (Howard et al., 2017) for 32×32 pixels: its stem has stride 1, so that five halvings become four."""

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        inputs = [32, *(channels for _, channels in _STRIDES_AND_CHANNELS)]
        self.layers = nn.Sequential(
            *(
                _Separable(before, channels, stride)
                for before, (stride, channels) in zip(inputs[:-1], _STRIDES_AND_CHANNELS, strict=True)
            )
        )
        self.linear = nn.Linear(inputs[-1], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)``."""
        features = self.layers(F.relu(self.bn1(self.conv1(images))))
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))  # type: ignore[no-any-return]


class _Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, features: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(features)))
