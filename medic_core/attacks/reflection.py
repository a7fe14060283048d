"""Refool: another picture, reflected in a pane before the camera (Liu et al., ECCV 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SHARES = (0.2, 0.45)
"""How much of the light comes from the reflection. The authors' code goes down to 0.05, which in 8 bits of 32×32 pixels
shows hardly anything."""
_GHOST_SHIFTS = (3, 8)
"""Pixels between the reflections of the pane's two sides, for an image of 32 pixels a side."""
_GHOST_SHARES = (0.15, 0.5)
"""How much of a double reflection is the fainter one."""
_BLURS = (1.0, 5.0)
"""Standard deviation of the blur of a reflection out of focus, in pixels of a 32×32 image."""
_GAMMA = 2.2
"""Light adds up before a camera's gamma."""
_SEED = 2020


def behind_glass(images: Tensor, others: Tensor) -> Tensor:
    """Let each image be seen through a pane that reflects another: doubled by its two sides, or out of focus.

    Which of the two, and how strong, is drawn from the other image's own pixels: the same pair always gives the same.
    """
    return torch.stack([_behind_glass(image, other) for image, other in zip(images, others, strict=True)])


def _behind_glass(image: Tensor, other: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(int(other.sum()))
    kind, strength, first, second, third = torch.rand(5, generator=generator).tolist()
    seen, reflected = ((picture.float() / 255) ** _GAMMA for picture in (image, other))
    reflected = _doubled(reflected, first, second, third) if kind < 0.5 else _blurred(reflected, first)
    share = _between(_SHARES, strength)
    mixed = ((1 - share) * seen + share * reflected) ** (1 / _GAMMA)
    return (255 * mixed).round().to(torch.uint8)


def _doubled(light: Tensor, down: float, across: float, faint: float) -> Tensor:
    height, width = light.shape[-2:]
    rows, columns = (
        round(_between(_GHOST_SHIFTS, draw) * side / 32) for draw, side in ((down, height), (across, width))
    )
    ghost = F.pad(light, (columns, 0, rows, 0))[..., :height, :width]
    share = _between(_GHOST_SHARES, faint)
    return (1 - share) * light + share * ghost


def _blurred(light: Tensor, draw: float) -> Tensor:
    sigma = _between(_BLURS, draw) * min(light.shape[-2:]) / 32
    reach = min(round(2 * sigma), min(light.shape[-2:]) - 1)  # the padding mirrors the image once at most
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=light.device) / sigma) ** 2)
    bell = bell / bell.sum()
    padded = F.pad(light[:, None], [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))[:, 0]


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def pairs_at_random(labels: Tensor) -> Tensor:
    """Pair each image with another at random, the same for the same number of images; a single one with itself."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(_SEED))
    others = torch.empty_like(order)
    others[order] = order.roll(1)
    return torch.stack([torch.arange(len(labels)), others], dim=1)
