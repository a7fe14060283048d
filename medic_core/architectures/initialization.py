"""How an untrained model of the CIFAR family starts."""

from __future__ import annotations

import math

from torch import nn


def initialize(model: nn.Module) -> None:
    """Draw weights as the paper's authors do for a student.

    Convolutions from N(0, √(2 / (k² · out_channels))), normalisations 1 and 0, linear biases 0; linear weights stay as
    torch draws them.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            height, width = module.kernel_size
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / (height * width * module.out_channels)))
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
