"""Labelled images as tensors on one device, batched, shuffled and augmented by a seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from medic_core.config import Config, Preprocessing

EPOCHS, STEPS = 30, 2_250
"""Least training where a config does not say how much: few images need more epochs, since it is steps that count."""

HOLDOUT_SHARE = 0.2
"""Of the clean images, where some have to judge: the report's without test data, and always those of ``auto``."""

STATISTICS_EPOCH = -1
"""Stands for the pass over the data before training, so that its randomness is no epoch's."""


@dataclass(frozen=True)
class Batches:
    """Images of one data set, all on one device.

    Attributes:
        images: ``(n, 3, height, width)``, uint8, RGB.
        labels: ``(n,)``, int64, index of the true class.
        preprocessing: How pixels become the model's input.
        alive: Called after each batch of every pass, so that whoever waits for one sees that it goes on.
    """

    images: Tensor
    labels: Tensor
    preprocessing: Preprocessing
    alive: Callable[[], None] = field(default=lambda: None, compare=False)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def to(self, device: torch.device) -> Batches:
        """Return the same images on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    def select(self, indices: Tensor) -> Batches:
        """Return the images at ``indices``."""
        where = indices.to(self.images.device)
        return replace(self, images=self.images[where], labels=self.labels[where])

    def in_order(self, batch_size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs ``(b, 3, height, width)`` and labels, neither shuffled nor augmented."""
        for start in range(0, len(self), batch_size):
            pixels = _pixels(self.images[start : start + batch_size])
            yield normalize(pixels, self.preprocessing), self.labels[start : start + batch_size]
            self.alive()

    def shuffled(self, config: Config, *, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of augmented inputs and labels, the same for the same seed and epoch on every device."""
        device = self.images.device
        order, draws = _draw(len(self), config, epoch)
        order, draws = order.to(device), draws.to(device)
        sizes = cut(len(self), config.batch_size)
        for chosen, drawn in zip(torch.split(order, sizes), torch.split(draws, sizes), strict=True):
            pixels = augment(_pixels(self.images[chosen]), drawn, config)
            yield normalize(pixels, self.preprocessing), self.labels[chosen]
            self.alive()

    def epochs(self, config: Config) -> int:
        """Return the number of epochs to train: what ``config`` says, else at least ``EPOCHS`` and ``STEPS`` steps."""
        return config.epochs or max(EPOCHS, math.ceil(STEPS / self.steps(config)))

    def steps(self, config: Config) -> int:
        """Return the number of batches in one epoch of ``shuffled``."""
        return len(cut(len(self), config.batch_size))


def blank(preprocessing: Preprocessing) -> Batches:
    """Return two black images of the size that a model takes, for what asks no more of images than that."""
    return Batches(
        torch.zeros(2, 3, *preprocessing.input_size, dtype=torch.uint8), torch.zeros(2).long(), preprocessing
    )


def cut_evenly(count: int, size: int) -> list[int]:
    """Cut a batch into parts of at most ``size`` images, as even as can be; return how many are in each.

    No part has a single image where there are more, so of an odd number one part is of three when ``size`` is 2.
    """
    parts = max(1, min(math.ceil(count / size), count // 2))
    return [count // parts + (number < count % parts) for number in range(parts)]


def cut(count: int, size: int) -> list[int]:
    """Cut ``count`` images into batches of ``size`` and a smaller last one; return how many are in each.

    A last one of a single image joins the one before it: batch normalisation cannot train on one image.
    """
    batches = max(1, math.ceil((count - 1) / size))
    return [size] * (batches - 1) + [count - size * (batches - 1)]


def _pixels(images: Tensor) -> Tensor:
    """8-bit images as numbers in [0, 1]."""
    return images.to(torch.get_default_dtype()) / 255


def _draw(count: int, config: Config, epoch: int) -> tuple[Tensor, Tensor]:
    """An epoch's order, and four uniform numbers in [0, 1) for the augmentation of each image; drawn on the CPU."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch + 1)
    return torch.randperm(count, generator=generator), torch.rand(count, 4, generator=generator)


def normalize(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turn RGB pixels in [0, 1], ``(b, 3, height, width)``, into the model's input."""
    low, high = preprocessing.value_range
    scaled = pixels * (high - low) + low
    if preprocessing.color_order == "BGR":
        scaled = scaled.flip(1)
    scales = zip(preprocessing.mean, preprocessing.std, strict=True)
    return torch.cat(  # numbers rather than tensors: a GPU would wait for those
        [(scaled[:, channel : channel + 1] - mean) / std for channel, (mean, std) in enumerate(scales)], dim=1
    )


def augment(pixels: Tensor, draws: Tensor, config: Config) -> Tensor:
    """Crop, rotate and mirror each image at random, in that order, as the paper's training did.

    Args:
        pixels: ``(b, 3, height, width)``, in [0, 1]; black is what lies outside.
        draws: ``(b, 4)``, uniform in [0, 1): row and column of the crop, angle, mirroring.
        config: Its padding, rotation and flip.
    """
    if config.crop_padding:
        offsets = (draws[:, :2] * (2 * config.crop_padding + 1)).long()
        pixels = _crop(pixels, offsets, config.crop_padding)
    if config.rotation_degrees:
        angles = (2 * draws[:, 2] - 1) * math.radians(config.rotation_degrees)
        pixels = _rotate(pixels, angles)
    if config.horizontal_flip:
        mirrored = (draws[:, 3] < 0.5).view(-1, 1, 1, 1)
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
    return pixels


def _crop(pixels: Tensor, offsets: Tensor, padding: int) -> Tensor:
    batch, channels, height, width = pixels.shape
    padded = F.pad(pixels, [padding] * 4)
    rows = offsets[:, 0, None] + torch.arange(height, device=pixels.device)
    columns = offsets[:, 1, None] + torch.arange(width, device=pixels.device)
    rows = rows[:, None, :, None].expand(batch, channels, height, padded.shape[3])
    columns = columns[:, None, None, :].expand(batch, channels, height, width)
    return padded.gather(2, rows).gather(3, columns)


def _rotate(pixels: Tensor, angles: Tensor) -> Tensor:
    height, width = pixels.shape[2:]
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    transform = torch.stack([cosine, -sine * height / width, zero, sine * width / height, cosine, zero], dim=1).view(
        -1, 2, 3
    )  # affine_grid's coordinates run over [-1, 1] on both axes, whatever the shape
    grid = F.affine_grid(transform, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def stratified_holdout(labels: Tensor, *, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split indices into those that train and those held out, class by class.

    Args:
        labels: ``(n,)``.
        share: Of each class to hold out, rounded, at least one image and never all of a class; a class of one image
            trains.
        seed: Of the choice.

    Returns:
        Sorted indices for training, sorted indices held out.
    """
    generator = torch.Generator().manual_seed(seed)
    held: list[Tensor] = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held.append(members[torch.randperm(len(members), generator=generator)[:count]])
    out = torch.cat(held).sort().values
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[out] = False
    return keep.nonzero().flatten(), out
