"""Wide residual networks for small images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.architectures.initialization import initialize


class WideResNet(nn.Module):
    """Pre-activation wide residual network (Zagoruyko and Komodakis, 2016), WRN-``depth``-``width``.

    Module names are those of the MEDIC authors' network, so that its checkpoints load. Where they pool 8×8 positions
    the average here is over all positions, which is the same at 32×32 pixels.

    Args:
        depth: 6n + 4, where n is the number of residual blocks in each of the three groups.
        width: Factor on the channels 16, 32, 64 of the groups.
        num_classes: Number of logits.
        dropout: Probability, between the two convolutions of a block.
    """

    def __init__(self, *, depth: int, width: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.block1 = _Group(blocks, channels[0], channels[1], stride=1, dropout=dropout)
        self.block2 = _Group(blocks, channels[1], channels[2], stride=2, dropout=dropout)
        self.block3 = _Group(blocks, channels[2], channels[3], stride=2, dropout=dropout)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.fc = nn.Linear(channels[3], num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)``."""
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        features = F.relu(self.bn1(features))
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))  # type: ignore[no-any-return]


class _Group(nn.Module):
    def __init__(self, blocks: int, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        first = _Block(inputs, outputs, stride=stride, dropout=dropout)
        rest = (_Block(outputs, outputs, stride=1, dropout=dropout) for _ in range(blocks - 1))
        self.layer = nn.Sequential(first, *rest)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features)  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        widens = inputs != outputs
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False) if widens else None

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        shortcut = features if self.convShortcut is None else self.convShortcut(active)
        inner = self.dropout(F.relu(self.bn2(self.conv1(active))))
        return shortcut + self.conv2(inner)  # type: ignore[no-any-return]
