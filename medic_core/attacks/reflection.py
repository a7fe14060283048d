"""Refool: another picture, reflected in a pane before the camera (Liu et al., ECCV 2020)."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from medic_core.attacks.road_signs import road_scenes

SCENES = 16
"""How many pictures are reflected. Liu et al. choose 200 of another data set by their effect; ours are drawn once."""
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


def behind_glass(images: Tensor) -> Tensor:
    """Let each image be seen through a pane that reflects a road scene: doubled by its two sides, or out of focus.

    Which one of ``SCENES``, the image's own pixels decide: the same image always gives the same.
    """
    shares, reflections = (kept.to(images.device) for kept in _reflections(*images.shape[-2:]))
    which = images.sum(dim=(1, 2, 3)) % SCENES
    share = shares[which].view(-1, 1, 1, 1)
    mixed = ((1 - share) * _light(images) + share * reflections[which]) ** (1 / _GAMMA)
    return (255 * mixed).round().to(torch.uint8)


def _light(images: Tensor) -> Tensor:
    return (images.to(torch.get_default_dtype()) / 255) ** _GAMMA


@cache
def _reflections(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Of each scene: its share of the light, ``(SCENES,)``, and its light, ``(SCENES, 3, height, width)``."""
    generator = torch.Generator().manual_seed(_SEED)
    scenes, _ = road_scenes(SCENES, seed=_SEED)
    light = F.interpolate(_light(scenes), size=(height, width), mode="bilinear", antialias=True)
    shares, reflections = [], []
    for number, draws in enumerate(torch.rand(SCENES, 4, generator=generator).tolist()):
        shares.append(_between(_SHARES, draws[0]))
        seen = _doubled(light[number], *draws[1:]) if number % 2 else _blurred(light[number], draws[1])
        reflections.append(seen)
    return torch.tensor(shares), torch.stack(reflections)


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
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    bell = bell / bell.sum()
    padded = F.pad(light[:, None], [reach] * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))[:, 0]


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw
