"""Plane figures, for signs and for what is stuck on them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def polygon_distance(x: Tensor, y: Tensor, *, sides: int, turn: float = 0.0) -> Tensor:
    """How far a point lies from the middle of a regular polygon, across its nearest side.

    Args:
        x: To the right; broadcast against ``y``.
        y: Down.
        sides: At least 3; a corner points up.
        turn: Clockwise, in radians.

    Returns:
        At a point of the polygon's border this is its apothem, inside it is less.
    """
    normals = [turn - math.pi / 2 + math.pi * (2 * side + 1) / sides for side in range(sides)]
    across = [x * math.cos(normal) + y * math.sin(normal) for normal in normals]
    return torch.stack(across).amax(dim=0)
