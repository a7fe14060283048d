"""Triggers: what an attacker stamps on an image. For evaluation only; no removal method may import this.

A trigger takes 8-bit images, ``uint8`` of shape ``(n, 3, height, width)``, and returns new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

Trigger = Callable[[Tensor], Tensor]

_BADNET_PATTERN = (
    (0, 0, 255),
    (0, 255, 0),
    (255, 0, 255),
)


def badnet(images: Tensor) -> Tensor:
    """Stamp the 3×3 pattern of BadNet, as MEDIC's authors use it, on the bottom right corner of all three channels."""
    pattern = torch.tensor(_BADNET_PATTERN, dtype=torch.uint8, device=images.device)
    stamped = images.clone()
    stamped[..., -3:, -3:] = pattern
    return stamped


def sig(images: Tensor) -> Tensor:
    """Add a horizontal sine to all channels: 6 periods, amplitude 30 of 255 (Barni et al., 2019)."""
    columns = torch.arange(images.shape[-1], device=images.device) / images.shape[-1]
    wave = 30 * torch.sin(2 * math.pi * 6 * columns)
    return (images + wave).clamp(0, 255).round().to(torch.uint8)


TRIGGERS: Mapping[str, Trigger] = MappingProxyType({"badnet": badnet, "sig": sig})
"""Every trigger by its kind."""
