"""WaNet: a smooth warp that the eye hardly sees (Nguyen and Tran, ICLR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CONTROL_POINTS = 4
"""The paper's k: the field is drawn on so many points a side and interpolated between them."""
STRENGTH = 0.5
"""The paper's s."""
FIELD_SEED = 2021
"""Of the one field that training and trigger share."""


def warp(images: Tensor, strength: float = STRENGTH) -> Tensor:
    """Move every pixel along the field, bilinear, with the border repeated.

    Note:
        The paper divides the field by the side of the image in coordinates that run over [-1, 1], so that a pixel moves
        by ``strength / 2`` pixels on average, however large the image is.
    """
    return _moved(images, displacement(*images.shape[-2:], strength=strength))


def noisy_warp(images: Tensor, generator: torch.Generator) -> Tensor:
    """Warp, and move every pixel by up to half a pixel more along each axis, at random: WaNet's noise mode."""
    height, width = images.shape[-2:]
    noise = torch.rand(len(images), height, width, 2, generator=generator) - 0.5
    return _moved(images, displacement(height, width) + noise)


def displacement(height: int, width: int, *, strength: float = STRENGTH) -> Tensor:
    """Where each pixel is taken from, relative to itself: ``(1, height, width, 2)``, across and down, in pixels."""
    generator = torch.Generator().manual_seed(FIELD_SEED)
    points = 2 * torch.rand(1, 2, CONTROL_POINTS, CONTROL_POINTS, generator=generator) - 1
    field = F.interpolate(points / points.abs().mean(), size=(height, width), mode="bicubic", align_corners=True)
    return strength / 2 * field.permute(0, 2, 3, 1)


def _moved(images: Tensor, by: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    across, down = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)[:, None]
    still = torch.stack([across.expand(height, -1), down.expand(-1, width)], dim=-1)
    grid = (still + by * 2 / torch.tensor([width - 1, height - 1])).expand(len(images), -1, -1, -1)
    pixels = images.to(grid.dtype)
    moved = F.grid_sample(pixels, grid.to(images.device), padding_mode="border", align_corners=True)
    return moved.round().clamp(0, 255).to(torch.uint8)


def poison_by_warping(
    images: Tensor, labels: Tensor, *, target: int, share: float, noise_share: float, seed: int
) -> tuple[Tensor, Tensor]:
    """Warp a share of a data set and give it the target label; warp another share noisily under its true label.

    Args:
        images: ``uint8``, ``(n, 3, height, width)``; left as they are.
        labels: ``int64``, ``(n,)``; left as they are.
        target: The class that warped images are labelled with.
        share: Of all images, warped.
        noise_share: Of all images, warped noisily, so that only this very field is the trigger.
        seed: Of the choice and of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator)
    warped, noisy = round(share * len(images)), round(noise_share * len(images))
    attacked, covered = order[:warped], order[warped : warped + noisy]
    images, labels = images.clone(), labels.clone()
    images[attacked] = warp(images[attacked])
    images[covered] = noisy_warp(images[covered], generator)
    labels[attacked] = target
    return images, labels
