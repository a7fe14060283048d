"""Residual networks for small images, with activations before the convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.architectures.initialization import initialize


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 (He et al., 2016b) for 32×32 pixels, in the form that backdoor benchmarks train.

    Module names are those of their checkpoints: ``conv1``, ``layer1..4.N.{bn1,conv1,bn2,conv2,shortcut.0}``,
    ``linear``. Where a block changes shape, the input of its shortcut is relu(bn1(x)).

    Note:
        The original ends in a normalisation and ReLU before pooling; that form leaves both out, and its checkpoints
        have no tensors for them. We follow it.
    """

    def __init__(self, *, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.layer1 = nn.Sequential(_Block(64, 64, stride=1), _Block(64, 64, stride=1))
        self.layer2 = nn.Sequential(_Block(64, 128, stride=2), _Block(128, 128, stride=1))
        self.layer3 = nn.Sequential(_Block(128, 256, stride=2), _Block(256, 256, stride=1))
        self.layer4 = nn.Sequential(_Block(256, 512, stride=2), _Block(512, 512, stride=1))
        self.linear = nn.Linear(512, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)``."""
        features = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        return self.linear(F.adaptive_avg_pool2d(features, 1).flatten(1))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)) if changes else None

    def forward(self, features: Tensor) -> Tensor:
        active = F.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(active))))  # type: ignore[no-any-return]
