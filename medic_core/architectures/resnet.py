"""Residual networks for small images, with activations after the sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.architectures.initialization import initialize


class ResNet(nn.Module):
    """Residual network of basic blocks (He et al., 2016) with a 3×3 stem of stride 1 and no max-pooling.

    Module names are those of torchvision's ResNets: ``conv1``, ``bn1``, ``layer1`` and so on, ``fc``.

    Args:
        blocks: How many basic blocks each stage has; every stage but the first halves height and width.
        channels: Of each stage; the stem has those of the first.
        projection: Where a stage widens, the shortcut is a 1×1 convolution with normalisation (``downsample``);
            without, it takes every second position and fills the new channels with zeros, which needs no parameter.
        num_classes: Number of logits.
    """

    def __init__(self, *, blocks: Sequence[int], channels: Sequence[int], projection: bool, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, channels[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self._stages = tuple(f"layer{number}" for number in range(1, len(blocks) + 1))
        inputs = channels[0]
        for number, (name, count, outputs) in enumerate(zip(self._stages, blocks, channels, strict=True)):
            first = _Block(inputs, outputs, stride=2 if number else 1, projection=projection)
            rest = (_Block(outputs, outputs, stride=1, projection=projection) for _ in range(count - 1))
            self.add_module(name, nn.Sequential(first, *rest))
            inputs = outputs
        self.fc = nn.Linear(inputs, num_classes)
        initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``(batch, num_classes)``."""
        features = F.relu(self.bn1(self.conv1(images)))
        for stage in self._stages:
            features = self.get_submodule(stage)(features)
        return self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))  # type: ignore[no-any-return]


def cifar_resnet(*, depth: int, num_classes: int) -> ResNet:
    """ResNet-``depth`` as He et al. (2016, §4.2) define it for CIFAR-10, ``depth`` = 6n + 2.

    Three stages of n blocks with 16, 32 and 64 channels, parameter-free shortcuts ("option A").
    """
    blocks = (depth - 2) // 6
    return ResNet(blocks=(blocks,) * 3, channels=(16, 32, 64), projection=False, num_classes=num_classes)


def resnet16(*, num_classes: int) -> ResNet:
    """ResNet-16 of the paper's Appendix E.7, which names but does not define it.

    We take it to be WRN-16-1, the network of the paper's other CIFAR-10 experiments, with activations after the sum
    instead of before: a 3×3 stem, three stages of two basic blocks with 16, 32 and 64 channels, a 1×1 convolution with
    normalisation as shortcut where the width changes, global average pooling, one linear layer. The 16 counts as in
    WRN-16-1: stem, 12 convolutions in blocks, 2 shortcuts, linear layer.
    """
    return ResNet(blocks=(2, 2, 2), channels=(16, 32, 64), projection=True, num_classes=num_classes)


def resnet34(*, num_classes: int) -> ResNet:
    """ResNet-34 (He et al., 2016) with a stem for 32×32 pixels; keys as torchvision's, ``conv1.weight`` is 3×3."""
    return ResNet(blocks=(3, 4, 6, 3), channels=(64, 128, 256, 512), projection=True, num_classes=num_classes)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride, projection=projection)

    def forward(self, features: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(inner)) + self.downsample(features))


def _shortcut(inputs: int, outputs: int, stride: int, *, projection: bool) -> nn.Module:
    if inputs == outputs:
        return nn.Identity()
    if not projection:
        return _ZeroPadding(stride, outputs - inputs)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))


class _ZeroPadding(nn.Module):
    """Every ``stride``-th position, with ``extra`` channels of zeros."""

    def __init__(self, stride: int, extra: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, extra

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
