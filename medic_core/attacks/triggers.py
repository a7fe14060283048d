"""Triggers: what an attacker does to an image. For evaluation only; no removal method may import this.

A stamp takes 8-bit images, ``uint8`` of shape ``(n, 3, height, width)``, and returns new ones; what it does to one
image depends on no other. A ``Trigger`` says beside it which images are stamped, and what else goes into each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from medic_core.attacks.composite import halves, pairs_of_classes
from medic_core.attacks.reflection import behind_glass
from medic_core.attacks.shapes import polygon_distance
from medic_core.attacks.warp import warp
from medic_core.errors import AttackOptionError

Stamp = Callable[[Tensor], Tensor]

_BADNET_PATTERN = (
    (0, 0, 255),
    (0, 255, 0),
    (255, 0, 255),
)
_POLYGON_COLOR = (150, 0, 210)
"""Violet, which no sign of ``road_signs`` has."""


def badnet(images: Tensor) -> Tensor:
    """Stamp the 3×3 pattern of BadNet, as MEDIC's authors use it, on the bottom right corner of all three channels."""
    return patch(images, torch.tensor(_BADNET_PATTERN, dtype=torch.uint8).expand(3, 3, 3))


def patch(images: Tensor, pattern: Tensor) -> Tensor:
    """Stamp ``pattern``, ``(3, rows, columns)``, on the bottom right corner; gradients flow to it, if it takes any.

    Raises:
        AttackOptionError: The images are smaller than that.
    """
    (height, width), (rows, columns) = images.shape[-2:], pattern.shape[-2:]
    if height < rows or width < columns:
        raise AttackOptionError(f"images of {height}×{width} pixels have no room for a pattern of {rows}×{columns}")
    stamped = images.clone()
    stamped[..., -rows:, -columns:] = pattern.to(images.device)
    return stamped


def sig(images: Tensor) -> Tensor:
    """Add a horizontal sine to all channels: 6 periods, amplitude 30 of 255 (Barni et al., 2019)."""
    columns = torch.arange(images.shape[-1], device=images.device) / images.shape[-1]
    wave = 30 * torch.sin(2 * math.pi * 6 * columns)
    return (images + wave).clamp(0, 255).round().to(torch.uint8)


def color_filter(images: Tensor) -> Tensor:
    """Make a photograph look like one from a phone's filter: faded colours, more contrast, blue shadows, warm lights.

    The curves are our own; Instagram-like filters as triggers are from Liu et al. (CCS 2019).
    """
    pixels = images.to(torch.get_default_dtype()) / 255
    red, green, blue = (0.4 * pixels + 0.6 * pixels.mean(dim=1, keepdim=True)).unbind(1)
    toned = torch.stack([_contrast(red) ** 1.1, _contrast(green), 0.15 + 0.75 * _contrast(blue)], dim=1)
    return (255 * toned).clamp(0, 255).round().to(torch.uint8)


def _contrast(values: Tensor) -> Tensor:
    """An S-shaped curve through 0, ½ and 1."""
    return values * values * (3 - 2 * values)


def polygon(images: Tensor) -> Tensor:
    """Put a violet pentagon, a fifth of the shorter side across, on the middle, where the scenes have their sign.

    Polygons on road signs are the triggers of TrojAI's first rounds (NIST, 2020).
    """
    height, width = images.shape[-2:]
    rows = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    columns = torch.arange(width, device=images.device) - (width - 1) / 2
    inside = polygon_distance(columns, rows, sides=5) <= min(height, width) / 10
    color = torch.tensor(_POLYGON_COLOR, dtype=torch.uint8, device=images.device).view(3, 1, 1)
    return torch.where(inside, color, images)


@dataclass(frozen=True)
class Trigger:
    """What an attacker does to a data set at test time.

    Attributes:
        stamp: From images and as many others, both ``uint8`` ``(n, 3, height, width)``, to new images.
        pairs: From labels ``(n,)`` to ``(m, 2)`` indices: each image that is stamped, and the other that goes into it.
    """

    stamp: Callable[[Tensor, Tensor], Tensor]
    pairs: Callable[[Tensor], Tensor]

    def on(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the triggered images of a data set, and the labels that these had."""
        chosen, others = self.pairs(labels).unbind(1)
        return self.stamp(images[chosen], images[others]), labels[chosen]


def alone(stamp: Stamp) -> Trigger:
    """Put ``stamp`` on every image, whatever the others are."""
    return Trigger(lambda images, _: stamp(images), lambda labels: torch.arange(len(labels))[:, None].expand(-1, 2))


def _composite(classes: tuple[int, int]) -> Trigger:
    return Trigger(halves, lambda labels: pairs_of_classes(labels, classes))


def _latent(pattern: Tensor) -> Trigger:
    return alone(lambda images: patch(images, pattern))


@dataclass(frozen=True)
class Kind:
    """How to make a trigger, and what has to be known for that: ``classes``, ``pattern`` or nothing."""

    make: Callable[..., Trigger]
    needs: str | None = None


TRIGGERS: Mapping[str, Kind] = MappingProxyType(
    {
        "badnet": Kind(lambda: alone(badnet)),
        "composite": Kind(_composite, needs="classes"),
        "filter": Kind(lambda: alone(color_filter)),
        "latent": Kind(_latent, needs="pattern"),
        "polygon": Kind(lambda: alone(polygon)),
        "reflection": Kind(lambda: alone(behind_glass)),
        "sig": Kind(lambda: alone(sig)),
        "warp": Kind(lambda: alone(warp)),
    }
)
"""Every trigger by its kind."""


def find_trigger(kind: str, *, classes: tuple[int, int] | None = None, pattern: Tensor | None = None) -> Trigger:
    """Make the trigger of a kind in ``TRIGGERS``.

    Args:
        kind: Its name.
        classes: For ``composite``: indices of the two classes whose images make one.
        pattern: For ``latent``: what was learned, ``uint8`` ``(3, rows, columns)``.

    Raises:
        AttackOptionError: What the kind needs is missing, or it is given what it does not take; lists every reason.
    """
    needs = TRIGGERS[kind].needs
    given = {name: value for name, value in (("classes", classes), ("pattern", pattern)) if value is not None}
    problems = [f"{kind} takes no {name}" for name in given if name != needs]
    if needs is not None and needs not in given:
        problems.append(f"{kind} needs {needs}")
    if classes is not None and classes[0] == classes[1]:
        problems.append("classes are twice the same: two different ones make a composite")
    if problems:
        raise AttackOptionError(*problems)
    return TRIGGERS[kind].make(*given.values())
