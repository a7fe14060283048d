"""Every setting of every removal method, written once.

These frozen dataclasses are the HTTP schema, the stored record and the function argument. This module imports no
torch: the API and the client read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Literal, get_type_hints

from annotated_types import Ge, Gt, Interval, Le

LAYER_KINDS = ("convolution", "normalization", "linear")
"""Words that ``MedicConfig.layers`` takes beside module names; each stands for all layers of its kind."""

AUTHORS_LAYERS = "authors"
"""Stands for the layers that the authors' published code records in the architecture at hand."""


class InvalidConfigError(ValueError):
    """A setting is out of its bounds; the message names the field and the bound."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """Base of all settings: refuses unknown fields and, also when built in Python, values out of bounds."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        """Check every bound, because pydantic passes a ready-made instance through unchecked.

        Raises:
            InvalidConfigError: A number lies outside the bound that its annotation states.
        """
        kind: type = type(self)
        for name, bounds in _bounds(kind).items():
            value = getattr(self, name)
            for bound in bounds:
                if isinstance(value, int | float) and not _within(value, bound):
                    raise InvalidConfigError(f"{name} = {value!r} violates {bound}")


@cache
def _bounds(config: type) -> Mapping[str, tuple[object, ...]]:
    """The bounds that each field's annotation states."""
    hints = get_type_hints(config, include_extras=True)
    return {name: getattr(hint, "__metadata__", ()) for name, hint in hints.items()}


def _within(value: float, bound: object) -> bool:
    if not math.isfinite(value):
        return False
    low: Any = getattr(bound, "ge", None)
    high: Any = getattr(bound, "le", None)
    above: Any = getattr(bound, "gt", None)
    return (low is None or value >= low) and (high is None or value <= high) and (above is None or value > above)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an 8-bit image becomes the input of the suspect.

    ``x = low + (high - low) * pixel / 255`` with ``(low, high) = value_range``, channels in ``color_order``, then
    ``(x - mean) / std``. Images of another size are resized to ``input_size`` (height, width), bilinear with
    antialiasing.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    input_size: tuple[Annotated[int, Interval(ge=8, le=1024)], Annotated[int, Interval(ge=8, le=1024)]] = (32, 32)
    color_order: Literal["RGB", "BGR"] = "RGB"
    value_range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (
        1.0,
        1.0,
        1.0,
    )


@dataclass(frozen=True, kw_only=True)
class Config(Checked):
    """What every method that trains shares: Adam with a cosine schedule per epoch to 0, augmentation, seed.

    Attributes:
        crop_padding: Random crop of the input size after zero-padding by this many pixels.
        rotation_degrees: Random rotation within ± this, nearest neighbour, black outside.
        horizontal_flip: Mirror half of the images. Switch it off where mirroring changes the class, as for digits.
    """

    epochs: Annotated[int, Interval(ge=1, le=10_000)] = 60
    batch_size: Annotated[int, Interval(ge=2, le=4096)] = 64
    learning_rate: Annotated[float, Gt(0), Le(10)] = 1e-2
    weight_decay: Annotated[float, Ge(0), Le(1)] = 1e-4
    crop_padding: Annotated[int, Interval(ge=0, le=64)] = 4
    rotation_degrees: Annotated[float, Interval(ge=0, le=180)] = 3.0
    horizontal_flip: bool = True
    seed: Annotated[int, Interval(ge=0, le=2**31 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class MedicConfig(Config):
    """Importance-driven cloning (Xu et al., "MEDIC: Remove Model Backdoors via Importance Driven Cloning", CVPR 2023).

    The defaults are those of preset ``default``. Each named option is a row in which the paper and its authors'
    published code differ.

    Attributes:
        preset: Where the other fields come from; by itself it sets nothing, ``expand_preset`` does.
        temperature: τ of Eq. 2 and 3; multiplies the logits of both softmaxes.
        cloning_weight: λ, the weight of the cloning loss beside cross-entropy.
        layers: What is cloned: kinds (``convolution``, ``normalization``, ``linear``), module names, or ``authors``.
        statistics: μ and σ ``per_channel`` over batch and position, with the authors' floor of σ near 1/√n; or
            ``per_neuron`` (channel and position), the population's.
        gradient: Of the ``batch_mean`` loss, so 1/B of each sample's own; or of each sample's own (``per_sample``).
        impact: The gradient enters Eq. 3 ``signed``, or by ``magnitude`` as Appendix C argues.
        compare: A layer whose output enters a ReLU is compared ``after_relu`` (and the gradient is read there), or at
            its own ``output``. The activation term is always of the output.
    """

    method: Literal["medic"] = "medic"
    preset: Literal["default", "authors", "paper"] = "default"
    temperature: Annotated[float, Gt(0), Le(1000)] = 5.0
    cloning_weight: Annotated[float, Gt(0), Le(1e6)] = 10.0
    layers: tuple[str, ...] = (AUTHORS_LAYERS,)
    statistics: Literal["per_channel", "per_neuron"] = "per_channel"
    gradient: Literal["batch_mean", "per_sample"] = "batch_mean"
    impact: Literal["signed", "magnitude"] = "signed"
    compare: Literal["after_relu", "output"] = "after_relu"

    def __post_init__(self) -> None:
        """Refuse an empty choice of layers beside what every config refuses."""
        super().__post_init__()
        if not self.layers:
            raise InvalidConfigError("layers is empty: name kinds or modules to clone")


@dataclass(frozen=True, kw_only=True)
class ScratchConfig(Config):
    """Training from scratch on the clean images alone: the baseline that cloning has to beat."""

    method: Literal["scratch"] = "scratch"


RemovalConfig = MedicConfig | ScratchConfig

_AUTHORS: Mapping[str, Any] = MappingProxyType(
    {
        "epochs": 60,
        "batch_size": 64,
        "learning_rate": 1e-2,
        "weight_decay": 1e-4,
        "crop_padding": 4,
        "rotation_degrees": 3.0,
        "horizontal_flip": True,
        "temperature": 5.0,
        "cloning_weight": 10.0,
        "layers": (AUTHORS_LAYERS,),
        "statistics": "per_channel",
        "gradient": "batch_mean",
        "impact": "signed",
        "compare": "after_relu",
    }
)

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "authors": _AUTHORS,
        "paper": MappingProxyType(
            {
                **_AUTHORS,
                "layers": LAYER_KINDS,
                "statistics": "per_neuron",
                "gradient": "per_sample",
                "impact": "magnitude",
                "compare": "output",
            }
        ),
        "default": _AUTHORS,  # until measurement shows what is better
    }
)
"""What each preset of ``MedicConfig`` sets. ``expand_preset`` merges one with what the caller set."""


_E7_ARCHITECTURES = re.compile(r"[a-z]+/(preact_)?(vgg|mobilenet|resnet)")
E7_LEARNING_RATE = 1e-3


def expand_preset(chosen: Mapping[str, Any], *, architecture: str = "") -> dict[str, Any]:
    """Fill in what a preset sets; explicit fields win over it.

    Note:
        The paper trains VGG, MobileNet and ResNet at a tenth of its learning rate (Appendix E.7), so preset ``paper``
        does; the authors' code has one rate for all.

    Args:
        chosen: Fields of a removal config as the caller gave them, ``method`` and ``preset`` among them or not.
        architecture: What is to be repaired, by name.

    Returns:
        A dictionary with ``method`` and, for ``medic``, every field that the preset sets. An unknown preset or method
        is left as it is for validation to name.
    """
    method = chosen.get("method", "medic")
    name = chosen.get("preset", "default")
    preset = dict(PRESETS.get(name, {})) if method == "medic" and isinstance(name, str) else {}
    if preset and name == "paper" and _E7_ARCHITECTURES.match(architecture):
        preset["learning_rate"] = E7_LEARNING_RATE
    return {"method": method, **preset, **chosen}
