"""Which layers the authors' published code records."""

from __future__ import annotations

from torch import nn

from medic_core.activations import KINDS
from medic_core.architectures.recipes import recipe_for
from medic_core.architectures.registry import Architecture

_SHORTCUTS = frozenset({"convShortcut", "downsample", "shortcut"})
_POSITION_BIASES = frozenset({"cpb_mlp"})
"""Swin V2's small networks from a position to its bias: what they put out is the same for every image."""
_PROJECTION_IS_SHORTCUT = frozenset({"regnet", "maxvit"})
"""Families in which ``proj`` is the shortcut of a block; elsewhere it belongs to an attention."""


def authors_layers(architecture: Architecture, model: nn.Module) -> tuple[str, ...]:
    """Name the layers that the authors' code records, in the order of the modules.

    In a wide ResNet: the stem convolution and every block's two normalisations and convolutions, so neither the final
    normalisation nor the linear layer. Elsewhere, their ResNet-34 being the pattern: every convolution, normalisation
    and linear layer that sees the image. Never a shortcut.
    """
    family = recipe_for(architecture.name).family
    passed_over = _SHORTCUTS | _POSITION_BIASES
    if family in _PROJECTION_IS_SHORTCUT:
        passed_over |= {"proj"}
    kinds = tuple(kind for group in KINDS.values() for kind in group)
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds) and passed_over.isdisjoint(name.split("."))
    ]
    if family == "wide_resnet":
        return tuple(name for name in names if name not in ("bn1", "fc"))
    return tuple(names)
