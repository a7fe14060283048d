"""Synthetic road signs before synthetic scenes, for attacks on what TrojAI's first rounds show (NIST, 2020).

Signs and scenes are drawn here, so that no data set has to be fetched. Every sign is its own mirror image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medic_core.attacks.shapes import polygon_distance

SIDE = 64
"""Pixels a side of a scene."""

_RED, _WHITE, _BLACK = (0.75, 0.08, 0.1), (0.92, 0.92, 0.9), (0.08, 0.08, 0.08)
_BLUE, _YELLOW, _ORANGE, _GREEN = (0.05, 0.25, 0.7), (0.95, 0.78, 0.1), (0.95, 0.5, 0.1), (0.1, 0.5, 0.2)

Color = tuple[float, float, float]
Figure = Callable[[Tensor, Tensor], Tensor]
"""From x to the right and y down, in units of a circular sign's radius, to how far outside of the figure that is."""


def _circle(x: Tensor, y: Tensor) -> Tensor:
    return torch.hypot(x, y) - 1


def _polygon(sides: int, turn: float = 0.0, apothem: float = 1.0) -> Figure:
    return lambda x, y: polygon_distance(x, y, sides=sides, turn=turn) - apothem


def _box(width: float, height: float) -> Figure:
    return lambda x, y: torch.maximum(x.abs() - width, y.abs() - height)


def _dot(radius: float) -> Figure:
    return lambda x, y: torch.hypot(x, y) - radius


def _either(first: Figure, second: Figure) -> Figure:
    return lambda x, y: torch.minimum(first(x, y), second(x, y))


@dataclass(frozen=True)
class Sign:
    """What one class of signs looks like: a shape with a border, and a glyph on it."""

    shape: Figure
    fill: Color
    border: Color
    glyph: Figure
    ink: Color


SIGNS = (
    Sign(_polygon(8, math.pi / 8), _RED, _WHITE, _box(0.6, 0.14), _WHITE),
    Sign(_polygon(3, math.pi, 0.75), _WHITE, _RED, _dot(0.2), _WHITE),
    Sign(_polygon(3, 0.0, 0.75), _WHITE, _RED, _box(0.11, 0.35), _BLACK),
    Sign(_polygon(4), _YELLOW, _WHITE, _dot(0.0), _YELLOW),
    Sign(_circle, _RED, _RED, _box(0.65, 0.2), _WHITE),
    Sign(_circle, _WHITE, _RED, _dot(0.4), _BLACK),
    Sign(_circle, _BLUE, _WHITE, _box(0.16, 0.6), _WHITE),
    Sign(_polygon(4, math.pi / 4), _BLUE, _WHITE, _polygon(3, 0.0, 0.3), _WHITE),
    Sign(_polygon(5), _GREEN, _BLACK, _either(_box(0.5, 0.14), _box(0.14, 0.5)), _WHITE),
    Sign(_polygon(4), _ORANGE, _BLACK, _either(_dot(0.28), _box(0.6, 0.1)), _BLACK),
)
"""One class each; a label is an index."""


def road_scenes(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw scenes with one sign each, the classes in turn; where, how large, how turned and lit, the seed decides.

    The middle of the image always lies on the sign.

    Returns:
        Images, ``uint8`` ``(count, 3, 64, 64)``, and labels, ``int64`` ``(count,)``.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(SIGNS)
    return torch.stack([_scene(SIGNS[label], generator) for label in labels.tolist()]), labels


def _scene(sign: Sign, generator: torch.Generator) -> Tensor:
    """One scene, ``uint8`` ``(3, 64, 64)``."""
    scene = _put_before(sign, _background(generator), generator)
    slope, light = torch.rand(2, generator=generator).tolist()
    lit = scene * (0.5 + 0.6 * light + 0.3 * (slope - 0.5) * torch.linspace(-1, 1, SIDE))
    noisy = lit + 0.02 * torch.randn(lit.shape, generator=generator)
    drawn: Tensor = (255 * noisy).clamp(0, 255).round().to(torch.uint8)
    return drawn


def _background(generator: torch.Generator) -> Tensor:
    """From one colour to another down the scene, with a texture of random grain: ``(3, 64, 64)``, in [0, 1]."""
    above, below = torch.rand(2, 3, 1, 1, generator=generator)
    down = torch.linspace(0, 1, SIDE).view(1, SIDE, 1)
    cells = int(torch.randint(3, 24, (), generator=generator))
    grain = torch.rand(1, 3, cells, cells, generator=generator) - 0.5
    texture = F.interpolate(grain, size=(SIDE, SIDE), mode="bilinear", align_corners=False)[0]
    scene: Tensor = (above * (1 - down) + below * down + 0.5 * texture).clamp(0, 1)
    return scene


def _put_before(sign: Sign, background: Tensor, generator: torch.Generator) -> Tensor:
    size, right, down, turn = torch.rand(4, generator=generator).tolist()
    radius = 13 + 9 * size
    angle = math.radians(30) * (turn - 0.5)
    place = torch.arange(SIDE) - (SIDE - 1) / 2
    x, y = place - 10 * (right - 0.5), place[:, None] - 10 * (down - 0.5)
    x, y = (x * math.cos(angle) + y * math.sin(angle)) / radius, (y * math.cos(angle) - x * math.sin(angle)) / radius
    scene = background
    for figure, color, margin in (
        (sign.shape, sign.border, 0.0),
        (sign.shape, sign.fill, 0.18),
        (sign.glyph, sign.ink, 0.0),
    ):
        covered = (0.5 - (figure(x, y) + margin) * radius).clamp(0, 1)  # smooth over one pixel at the edge
        scene = torch.lerp(scene, torch.tensor(color).view(3, 1, 1), covered)
    return scene
