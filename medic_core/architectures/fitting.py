"""Compare tensors with architectures by key and shape, without building any weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from medic_core.architectures.recipes import Option
from medic_core.architectures.registry import find_architecture

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ShapeComparison:
    """How given tensors differ from the expected ones; ``fits`` when not at all.

    Attributes:
        missing: Keys that are expected and not given.
        unexpected: Keys that are given and not expected.
        mismatched: Key, expected shape and given shape, where the two differ.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]

    @property
    def fits(self) -> bool:
        """Whether keys and shapes are the same."""
        return not (self.missing or self.unexpected or self.mismatched)


def compare_shapes(expected: Mapping[str, Shape], given: Mapping[str, Shape]) -> ShapeComparison:
    """Compare two state dicts by key and shape; every list is in the order of its own state dict."""
    return ShapeComparison(
        missing=tuple(key for key in expected if key not in given),
        unexpected=tuple(key for key in given if key not in expected),
        mismatched=tuple(
            (key, shape, given[key]) for key, shape in expected.items() if key in given and given[key] != shape
        ),
    )


def shapes_of(name: str, *, num_classes: int, options: Mapping[str, Option]) -> dict[str, Shape]:
    """Return key and shape of each tensor that the architecture has; costs no memory, whatever its size.

    Raises:
        UnknownArchitectureError: No such name or option.
        UnsupportedArchitectureError: The architecture is refused.
    """
    architecture = find_architecture(name, num_classes=num_classes, options=options)
    with without_memory():
        return {key: tuple(tensor.shape) for key, tensor in architecture.build().state_dict().items()}


def num_classes_of(name: str, options: Mapping[str, Option], shapes: Mapping[str, Shape]) -> int | None:
    """Read from the tensors' shapes how many logits they make; None where they do not tell, or contradict each other.

    Raises:
        UnknownArchitectureError: No such name or option.
        UnsupportedArchitectureError: The architecture is refused.
    """
    two, three = (shapes_of(name, num_classes=count, options=options) for count in (2, 3))
    found = {
        shapes[key][axis]
        for key, shape in two.items()
        for axis, size in enumerate(shape)
        if size != three[key][axis] and key in shapes and len(shapes[key]) == len(shape)
    }
    return found.pop() if len(found) == 1 and 0 not in found else None


def suggest_architectures(shapes: Mapping[str, Shape]) -> tuple[str, ...]:
    """Name the architectures, with default options, that have exactly these tensors, whatever the number of classes."""
    index = json.loads((files("medic_core") / "architectures.json").read_text(encoding="utf-8"))
    possible = [entry["name"] for entry in index if entry["tensors"] == len(shapes) and entry["refused"] is None]
    return tuple(name for name in possible if _fits(name, shapes))


def _fits(name: str, shapes: Mapping[str, Shape]) -> bool:
    num_classes = num_classes_of(name, {}, shapes)
    if num_classes is None:
        return False
    return compare_shapes(shapes_of(name, num_classes=num_classes, options={}), shapes).fits


@contextmanager
def without_memory() -> Iterator[None]:
    """Make models whose tensors have shapes but no storage.

    ``torch.device("meta")`` would take too much: some constructors compute their layers' widths with small tensors that
    they read back.
    """
    with _Meta(), torch.random.fork_rng(devices=()):
        yield


class _Meta(TorchFunctionMode):
    """Puts on the meta device what parameters and buffers are made with, and leaves all other tensors alone."""

    _FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        chosen = {"device": "meta"} if func in self._FACTORIES else {}
        return func(*args, **{**(kwargs or {}), **chosen})
