"""Triggers: what an attacker stamps on an image. For evaluation only; no removal method may import this.

A trigger takes 8-bit images, ``uint8`` of shape ``(n, 3, height, width)``, and returns new ones.
"""

from __future__ import annotations

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


TRIGGERS: Mapping[str, Trigger] = MappingProxyType({"badnet": badnet})
"""Every trigger by its kind."""
