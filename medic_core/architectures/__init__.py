"""Architectures by name. A clone comes from its constructor, never from a copy of the suspect."""

from medic_core.architectures.fitting import (
    ShapeComparison,
    compare_shapes,
    num_classes_of,
    shapes_of,
    suggest_architectures,
)
from medic_core.architectures.layers import authors_layers
from medic_core.architectures.registry import Architecture, find_architecture

__all__ = [
    "Architecture",
    "ShapeComparison",
    "authors_layers",
    "compare_shapes",
    "find_architecture",
    "num_classes_of",
    "shapes_of",
    "suggest_architectures",
]
