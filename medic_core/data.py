"""Labelled images as tensors on one device, batched, shuffled and augmented by a seed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

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
    """

    images: Tensor
    labels: Tensor
    preprocessing: Preprocessing

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

    def in_order(self, batch_size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs ``(b, 3, height, width)`` and labels, neither shuffled nor augmented."""
        for start in range(0, len(self), batch_size):
            pixels = _pixels(self.images[start : start + batch_size])
            yield normalize(pixels, self.preprocessing), self.labels[start : start + batch_size]

    def shuffled(self, config: Config, *, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield one epoch of augmented inputs and labels, the same for the same seed and epoch on every device."""
        device = self.images.device
        order, draws = _draw(len(self), config, epoch)
        order, draws = order.to(device), draws.to(device)
        sizes = cut(len(self), config.batch_size)
        for chosen, drawn in zip(torch.split(order, sizes), torch.split(draws, sizes), strict=True):
            pixels = augment(_pixels(self.images[chosen]), drawn, config)
            yield normalize(pixels, self.preprocessing), self.labels[chosen]

    def epochs(self, config: Config) -> int:
        """Return the number of epochs to train: what ``config`` says, else at least ``EPOCHS`` and ``STEPS`` steps."""
        return config.epochs or max(EPOCHS, math.ceil(STEPS / self.steps(config)))

    def steps(self, config: Config) -> int:
        """Return the number of batches in one epoch of ``shuffled``."""
        return len(cut(len(self), config.batch_size))


def cut_evenly(count: int, size: int) -> list[int]:
    """Cut a batch into parts of at most ``size`` images, as even as can be; return how many are in each.

    No part has a single image where there are more, so of an odd number one part is of three when ``size`` is 2.
    """
    parts = max(1, min(math.ceil(count / size), count // 2))
    return [count // parts + (number < count % parts) for number in range(parts)]


def cut_in_pairs(count: int, size: int) -> list[int]:
    """Cut as ``cut_evenly`` does, but so that neighbours, see ``neighbours``, stay together.

    All parts but the last have an even number of images, and of an odd number one part is of three when ``size`` is 2
    or 3.
    """
    if count <= size:
        return [count]
    pairs = count // 2
    parts = min(math.ceil(count / (size - size % 2)), pairs)
    sizes = [2 * (pairs // parts + (number < pairs % parts)) for number in range(parts)]
    return [*sizes[:-1], count - sum(sizes[:-1])]


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


def corrupt(inputs: Tensor, share: float, preprocessing: Preprocessing) -> Tensor:
    """Do to some images what no clean image shows; from the device's random state.

    A corrupted image gets each of two rectangles of noise and a wave with probability ¾, and a warp with probability ¼:

    - A rectangle has sides from 2 pixels to a quarter of the image's; its noise is independent by pixel, and in one
      image in colour or grey, of any value or black and white.
    - A wave goes over the whole image and all colours, with an amplitude of up to a fifth of the value range: a sine
      or its sign in any direction, of one period on the longer side to one in two pixels.
    - A warp moves pixels along a smooth field, by up to a thirty-second of a side.

    Args:
        inputs: ``(b, 3, height, width)``, as the model takes them.
        share: Chance of an image to be corrupted.
        preprocessing: Which rectangles and waves go through as well.
    """
    corrupted = _chosen(inputs, share)
    warped = _warp(inputs, _chosen(inputs, 0.25) & corrupted)
    waved = _add_wave(warped, _wave(inputs) * (corrupted & _chosen(inputs, 0.75)), preprocessing)
    inside = _rectangles(inputs, 0.75) | _rectangles(inputs, 0.75)
    return torch.where(corrupted & inside, normalize(_noise(inputs), preprocessing), waved)


def _chosen(images: Tensor, share: float) -> Tensor:
    """Whether something happens to each image, ``(b, 1, 1, 1)``."""
    chosen: Tensor = torch.rand(len(images), 1, 1, 1, device=images.device) < share
    return chosen


def _warp(inputs: Tensor, chosen: Tensor) -> Tensor:
    """Move the pixels of some images along fields that bend over a quarter of the image, the border repeated."""
    points = torch.rand(len(inputs), 2, 4, 4, device=inputs.device) * 2 - 1
    strength = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) / 32
    sides = inputs.shape[2:]
    field = F.interpolate(2 * strength * points, size=sides, mode="bicubic", align_corners=True)
    rows, columns = ((2 * torch.arange(side, device=inputs.device) + 1) / side - 1 for side in sides)
    grid = torch.stack([columns + field[:, 0], rows[:, None] + field[:, 1]], dim=-1).to(inputs.dtype)
    return torch.where(chosen, F.grid_sample(inputs, grid, padding_mode="border", align_corners=False), inputs)


def _wave(like: Tensor) -> Tensor:
    """A sine or its sign for each image, ``(b, 1, height, width)``, its amplitude in [0, 0.2)."""
    pace, angle, phase, amplitude, shape = torch.rand(5, len(like), 1, 1, 1, device=like.device)
    rows, columns = (torch.arange(side, device=like.device) for side in like.shape[2:])
    turns = 0.5 * (2 / max(like.shape[2:])) ** pace  # of each pixel: even on the scale of logarithms
    along = torch.sin(2 * math.pi * angle) * rows.view(-1, 1) + torch.cos(2 * math.pi * angle) * columns
    wave = torch.sin(2 * math.pi * (turns * along + phase))
    wave = torch.where(shape < 0.5, wave.sign(), wave)
    scaled: Tensor = 0.2 * amplitude * wave
    return scaled


def _add_wave(inputs: Tensor, wave: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Add what is meant in pixels to what a model takes, and keep it in the range of pixels."""
    low, high = preprocessing.value_range
    channels = []
    for channel, (mean, std) in enumerate(zip(preprocessing.mean, preprocessing.std, strict=True)):
        black, white = (low - mean) / std, (high - mean) / std
        waved = inputs[:, channel : channel + 1] + wave * (white - black)
        channels.append(waved.clamp(min(black, white), max(black, white)))
    return torch.cat(channels, dim=1)


def _noise(like: Tensor) -> Tensor:
    """Pixels in [0, 1], in the shape and memory format of ``like``."""
    noise = torch.rand_like(like)
    grey, binary = torch.rand(2, len(like), 1, 1, 1, device=like.device) < 0.5
    noise = torch.where(grey, noise[:, :1], noise)
    return torch.where(binary, noise.round(), noise)


def _rectangles(images: Tensor, share: float) -> Tensor:
    """One rectangle in each image, or none: ``(b, 1, height, width)``, true inside."""
    spans = []
    for length in images.shape[2:]:
        side, start = torch.rand(2, len(images), 1, device=images.device)
        side = 2 + (side * (max(2, length // 4) - 1)).long()
        first = (start * (length + 1 - side)).long()
        place = torch.arange(length, device=images.device)
        spans.append((first <= place) & (place < first + side))
    inside: Tensor = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return inside & _chosen(images, share)


def foreign_parts(inputs: Tensor, share: float) -> Tensor:
    """Choose where some images will show their neighbour; from the device's random state.

    A part is a band from one edge, along either axis, or a box anywhere; a quarter to three quarters of each side that
    it does not span.

    Args:
        inputs: ``(b, 3, height, width)``.
        share: Chance of an image to get a part of another.

    Returns:
        ``(b, 1, height, width)``, true where the neighbour is shown.
    """
    kind = torch.randint(3, (len(inputs), 1), device=inputs.device)  # a band of rows, a band of columns, or a box
    spans = []
    for axis, length in enumerate(inputs.shape[2:]):
        side, start = torch.rand(2, len(inputs), 1, device=inputs.device)
        side = 0.25 + 0.5 * side
        first = (1 - side) * torch.where(kind == axis, start.round(), start)
        place = (torch.arange(length, device=inputs.device) + 0.5) / length
        spans.append((first <= place) & (place < first + side) | (kind == 1 - axis))
    inside: Tensor = spans[0][:, None, :, None] & spans[1][:, None, None, :]
    return inside & _chosen(inputs, share)


def neighbours(count: int, device: torch.device) -> Tensor:
    """Return the index of each image's neighbour in a batch: of the pair that it is in; a last one alone is its own."""
    return (torch.arange(count, device=device) ^ 1).clamp(max=count - 1)


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
