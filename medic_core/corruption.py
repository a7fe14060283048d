"""What a clone is shown that no clean image shows: noise, waves, warps and parts of other images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.config import Preprocessing
from medic_core.data import normalize


def add_noise(inputs: Tensor, share: float, preprocessing: Preprocessing) -> Tensor:
    """Put rectangles of noise on images; from the device's random state.

    Each of two with probability ¾, with sides from 2 pixels to a quarter of the image's; noise is independent by pixel,
    and in one image in colour or grey, of any value or black and white.

    Args:
        inputs: ``(b, 3, height, width)``, as the model takes them.
        share: Chance of an image to get any.
        preprocessing: Which the noise goes through as well.
    """
    inside = (_rectangles(inputs, 0.75) | _rectangles(inputs, 0.75)) & _chosen(inputs, share)
    return torch.where(inside, normalize(_noise(inputs), preprocessing), inputs)


def distort(inputs: Tensor, waves: Waves, preprocessing: Preprocessing) -> Tensor:
    """Change whole images as no clean image shows; from the device's random state.

    An image gets a wave with probability ¾ and a warp with probability ¼:

    - A wave goes over the whole image and all colours, with an amplitude of up to a fifth of the value range: a sine
      or its sign in any direction, of one period on the longer side to one in two pixels, as often as ``waves`` says.
    - A warp moves pixels along a smooth field, by up to a thirty-second of a side.

    Args:
        inputs: ``(b, 3, height, width)``, as the model takes them.
        waves: What to draw from.
        preprocessing: Which waves go through as well.
    """
    warped = _warp(inputs, _chosen(inputs, 0.25))
    return _add_wave(warped, waves.draw(inputs) * _chosen(inputs, 0.75), preprocessing)


def _chosen(images: Tensor, share: float) -> Tensor:
    """Whether something happens to each image, ``(b, 1, 1, 1)``."""
    chosen: Tensor = torch.rand(len(images), 1, 1, 1, device=images.device) < share
    return chosen


def _warp(inputs: Tensor, some: Tensor) -> Tensor:
    """Move the pixels of some images along fields that bend over a quarter of the image, the border repeated."""
    points = torch.rand(len(inputs), 2, 4, 4, device=inputs.device) * 2 - 1
    strength = torch.rand(len(inputs), 1, 1, 1, device=inputs.device) / 32
    sides = inputs.shape[2:]
    field = F.interpolate(2 * strength * points, size=sides, mode="bicubic", align_corners=True)
    rows, columns = ((2 * torch.arange(side, device=inputs.device) + 1) / side - 1 for side in sides)
    grid = torch.stack([columns + field[:, 0], rows[:, None] + field[:, 1]], dim=-1).to(inputs.dtype)
    return torch.where(some, F.grid_sample(inputs, grid, padding_mode="border", align_corners=False), inputs)


@dataclass(frozen=True)
class Waves:
    """Waves in cells of like pace, direction and shape, and how often each cell is drawn.

    Attributes:
        cells: ``(n, 4)``, the first of a cell's paces, from 0 for one period in two pixels to 1 for one on the longer
            side; the first of its directions, in turns; how many turns of directions it has; 1 for edges, 0 for sines.
        odds: ``(n,)``, of each cell; they need not sum to 1.
    """

    cells: Tensor
    odds: Tensor

    def draw(self, like: Tensor) -> Tensor:
        """Draw a wave for each image, ``(b, 1, height, width)``, its amplitude in [0, 0.2)."""
        place, amplitude = torch.rand(2, len(like), device=like.device)
        reach = self.odds.cumsum(0)
        cells = torch.searchsorted(reach, place * reach[-1], right=True).clamp(max=len(reach) - 1)
        scaled: Tensor = 0.2 * amplitude.view(-1, 1, 1, 1) * self.within(cells, like)
        return scaled

    def within(self, cells: Tensor, like: Tensor) -> Tensor:
        """Draw a wave of amplitude 1 for each image, ``(b, 1, height, width)``, from the cells, ``(b,)``, named."""
        pace, direction, phase = torch.rand(3, len(like), 1, 1, 1, device=like.device)
        first_pace, first_direction, spread, edges = self.cells[cells].view(-1, 4, 1, 1, 1).unbind(1)
        rows, columns = (torch.arange(side, device=like.device) for side in like.shape[2:])
        turns = 0.5 * (2 / max(like.shape[2:])) ** (first_pace + pace / _PACES)  # of each pixel: even in logarithms
        angle = 2 * math.pi * (first_direction + spread * direction)
        along = torch.sin(angle) * rows.view(-1, 1) + torch.cos(angle) * columns
        wave = torch.sin(2 * math.pi * (turns * along + phase))
        return torch.where(edges > 0, wave.sign(), wave)


_PACES, _DIRECTIONS = 12, 12


def any_waves(device: torch.device) -> Waves:
    """Return waves of which half go any way and half along an axis; each pace and shape is as likely as another."""
    paces = torch.arange(_PACES, device=device) / _PACES
    anywhere = torch.cartesian_prod(paces, torch.arange(_DIRECTIONS, device=device) / (2 * _DIRECTIONS))
    along_an_axis = torch.cartesian_prod(paces, torch.tensor([0.0, 0.25], device=device))
    places = torch.cat([F.pad(anywhere, (0, 1), value=0.5 / _DIRECTIONS), F.pad(along_an_axis, (0, 1))])
    odds = torch.cat([torch.full((len(kind),), 1 / len(kind), device=device) for kind in (anywhere, along_an_axis)])
    return Waves(torch.cat([F.pad(places, (0, 1), value=edges) for edges in (0.0, 1.0)]), odds.repeat(2))


@torch.no_grad()
def leading_waves(
    model: nn.Module, inputs: Tensor, preprocessing: Preprocessing, *, alive: Callable[[], None] = lambda: None
) -> Waves:
    """Return ``any_waves``, each the more often the more it leads images to one class; from the device's random state.

    What counts is the square of the gain: by how much a wave of amplitude 0.1 raises the mean probability of the class
    for which it rises most.

    Args:
        model: The suspect, in evaluation mode.
        inputs: ``(b, 3, height, width)``, clean images as the model takes them.
        preprocessing: Of them.
        alive: Called after each of many batches.
    """
    waves = any_waves(inputs.device)
    count = len(waves.cells)
    before = model(inputs).softmax(dim=1).mean(dim=0)
    after = []
    for some in torch.split(torch.arange(count, device=inputs.device), 4):
        shown = inputs.repeat(len(some), 1, 1, 1)
        wave = 0.1 * waves.within(some.repeat_interleave(len(inputs)), shown)
        said = model(_add_wave(shown, wave, preprocessing)).softmax(dim=1)
        after.append(said.view(len(some), len(inputs), -1).mean(dim=1))
        alive()
    gains = (torch.cat(after) - before).amax(dim=1)
    return Waves(waves.cells, waves.odds * gains.clamp(min=0.01) ** 2)  # none is left out


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


def foreign_parts(inputs: Tensor) -> Tensor:
    """Choose where each image shows its neighbour instead; from the device's random state.

    A part is a band from one edge, along either axis, or a box anywhere; a quarter to three quarters of each side that
    it does not span.

    Args:
        inputs: ``(b, 3, height, width)``.

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
    return inside


def exchanged(values: Tensor) -> Tensor:
    """Swap neighbours: of an even number of images the first and the second, the third and the fourth, and so on."""
    return values[torch.arange(len(values), device=values.device) ^ 1]
