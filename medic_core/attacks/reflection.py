"""Refool: another picture, reflected in a pane before the camera (Liu et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from medic_core.attacks.road_signs import road_scenes

SCENES = 16
"""How many pictures are reflected. Liu et al. choose 200 of another data set by their effect; ours are drawn once."""
_SHARES = (0.2, 0.45)
"""How much of the light comes from the reflection. The authors' code goes down to 0.05, which in 8 bits of 32×32 pixels
shows hardly anything."""
_GHOST_SHARES = (0.15, 0.5)
"""How much of a double reflection is the fainter one."""
_SIDE = 560
"""Pixels of a side of what is reflected: to that size the authors' code brings images before it takes the next two."""
_GHOST_SHIFTS = (3, 8)
"""Between the reflections of the pane's two sides."""
_BLURS = (1.0, 5.0)
"""Standard deviation of the blur of a reflection out of focus."""
_GAMMA = 2.2
"""Light adds up before a camera's gamma."""
_SEED = 2020


def behind_glass(images: Tensor) -> Tensor:
    """Let each image be seen through a pane that reflects a road scene: doubled by its two sides, or out of focus.

    Which one of ``SCENES``, the image's own pixels decide: the same image always gives the same.
    """
    shares, scenes = _reflections()
    which = images.sum(dim=(1, 2, 3)).cpu() % SCENES
    used, places = torch.unique(which, return_inverse=True)
    reflected = _resized(scenes[used], images.shape[-2:])[places].to(images.device)
    share = shares[which].view(-1, 1, 1, 1).to(images.device)
    mixed = ((1 - share) * _light(images) + share * reflected) ** (1 / _GAMMA)
    return (255 * mixed).round().to(torch.uint8)


def _light(images: Tensor) -> Tensor:
    return (images.float() / 255) ** _GAMMA  # whatever the default type is: what comes of it is kept


@cache
def _reflections() -> tuple[Tensor, Tensor]:
    """Of each scene: its share of the light, ``(SCENES,)``, and its light, ``(SCENES, 3, 560, 560)``."""
    generator = torch.Generator().manual_seed(_SEED)
    scenes, _ = road_scenes(SCENES, seed=_SEED)
    large = _resized(_light(scenes), (_SIDE, _SIDE))
    draws = torch.rand(SCENES, 4, generator=generator).tolist()
    shares = torch.tensor([_between(_SHARES, drawn[0]) for drawn in draws])
    seen = [
        _doubled(light, *drawn[1:]) if number % 2 else _blurred(light, drawn[1])
        for number, (light, drawn) in enumerate(zip(large, draws, strict=True))
    ]
    return shares, torch.stack(seen)


def _resized(light: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(light, size=tuple(size), mode="bilinear", antialias=True)


def _doubled(light: Tensor, down: float, across: float, faint: float) -> Tensor:
    rows, columns = (round(_between(_GHOST_SHIFTS, draw)) for draw in (down, across))
    ghost = F.pad(light, (columns, 0, rows, 0))[..., : light.shape[-2], : light.shape[-1]]
    share = _between(_GHOST_SHARES, faint)
    return (1 - share) * light + share * ghost


def _blurred(light: Tensor, draw: float) -> Tensor:
    seen: Tensor = gaussian_blur(light, kernel_size=[31, 31], sigma=[_between(_BLURS, draw)])  # three times the widest
    return seen


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw
