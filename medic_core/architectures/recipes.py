"""What each architecture name stands for: the one table of names, families, options and refusals."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torchvision
from torch import nn

from medic_core.architectures.mobilenet import MobileNetV1
from medic_core.architectures.preact_resnet import PreActResNet18
from medic_core.architectures.resnet import cifar_resnet, resnet16, resnet34
from medic_core.architectures.vgg import VGG11
from medic_core.architectures.wide_resnet import WideResNet
from medic_core.errors import UnknownArchitectureError, UnsupportedArchitectureError

Option = bool | int | float | str


@dataclass(frozen=True)
class Recipe:
    """How to build one architecture.

    Attributes:
        family: What it shares its kind of blocks with.
        construct: Takes ``num_classes`` and the options, all by keyword; draws from the global random state.
        options: Names of the constructor arguments that a caller may set.
        image_multiple: What a caller's ``image_size`` must be a multiple of.
    """

    family: str
    construct: Callable[..., nn.Module]
    options: tuple[str, ...] = ()
    image_multiple: int = 1


MAX_DEPTH = 1204
MAX_WIDTH = 20
"""Bounds of the parametric names, so that comparing tensors with a name takes no more than a moment."""


def recipe_for(name: str) -> Recipe:
    """Look ``name`` up.

    Raises:
        UnknownArchitectureError: Nothing is called so; the message suggests names that are close.
        UnsupportedArchitectureError: The architecture is known but cannot be repaired; the message says why.
    """
    origin, _, short = name.partition("/")
    recipe = None
    if origin == "medic":
        recipe = _CIFAR.get(short) or _parametric(short)
    elif origin == "torchvision":
        recipe = _torchvision(short)
    if recipe is None:
        raise UnknownArchitectureError(f"no architecture is called {name!r}{_did_you_mean(short or name)}")
    return recipe


def usual_names() -> tuple[str, ...]:
    """Every name but the unusual members of the parametric families, refused ones included."""
    wide = [f"wide_resnet{depth}_{width}" for depth in (10, 16, 22, 28, 40) for width in (1, 2, 4, 8, 10)]
    deep = [f"resnet{depth}" for depth in (20, 32, 44, 56, 110)]
    ours = [f"medic/{short}" for short in (*wide, *deep, *_CIFAR)]
    return (*ours, *(f"torchvision/{short}" for short in _classifiers()))


def _did_you_mean(short: str) -> str:
    """Suggest names by what follows the slash, since that is what people remember."""
    by_short: dict[str, list[str]] = {}
    for name in usual_names():
        by_short.setdefault(name.partition("/")[2], []).append(name)
    close = difflib.get_close_matches(short.lower(), by_short, n=3)
    names = [name for match in close for name in by_short[match]]
    return f"; did you mean {' or '.join(names)}?" if names else "; names start with medic/ or torchvision/"


# --- the CIFAR family -------------------------------------------------------------------------------------------------

_CIFAR: Mapping[str, Recipe] = MappingProxyType(
    {
        "resnet16": Recipe("resnet", resnet16),
        "resnet34": Recipe("resnet", resnet34),
        "preact_resnet18": Recipe("preact_resnet", PreActResNet18),
        "vgg11": Recipe("vgg", partial(VGG11, normalized=False), ("dropout",)),
        "vgg11_bn": Recipe("vgg", partial(VGG11, normalized=True), ("dropout",)),
        "mobilenet_v1": Recipe("mobilenet", MobileNetV1),
    }
)


def _parametric(short: str) -> Recipe | None:
    if match := re.fullmatch(r"wide_resnet([1-9]\d{0,4})_([1-9]\d{0,4})", short):
        depth, width = map(int, match.groups())
        if depth % 6 != 4 or not 10 <= depth <= MAX_DEPTH or width > MAX_WIDTH:
            raise UnknownArchitectureError(
                f"there is no medic/wide_resnet{depth}_{width}: depth is 6n + 4, from 10 to {MAX_DEPTH}, "
                f"and width from 1 to {MAX_WIDTH}"
            )
        return Recipe("wide_resnet", partial(WideResNet, depth=depth, width=width), ("dropout",))
    if match := re.fullmatch(r"resnet([1-9]\d{0,4})", short):
        depth = int(match[1])
        if depth % 6 != 2 or not 8 <= depth <= MAX_DEPTH:
            raise UnknownArchitectureError(
                f"there is no medic/resnet{depth}: depth is 6n + 2, from 8 to {MAX_DEPTH}, or 16 or 34; "
                "the ImageNet ResNets are torchvision/resnet18, 34, 50, 101 and 152"
            )
        return Recipe("resnet", partial(cifar_resnet, depth=depth))
    return None


# --- torchvision's classifiers ---------------------------------------------------------------------------------------

_WITH_DROPOUT = frozenset(
    {"alexnet", "efficientnet", "mnasnet", "mobilenetv2", "mobilenetv3", "squeezenet", "vgg", "vision_transformer"}
)
"""Families whose dropout is an ``nn.Dropout``; a bare function could not be switched off while cloning."""

_AUXILIARY = "while training it returns auxiliary outputs beside its logits"
_REFUSED: Mapping[str, str] = MappingProxyType({"googlenet": _AUXILIARY, "inception_v3": _AUXILIARY})


def _classifiers() -> list[str]:
    return torchvision.models.list_models(module=torchvision.models)  # type: ignore[no-any-return]


def _torchvision(short: str) -> Recipe | None:
    if short not in torchvision.models.list_models():
        return None
    if reason := _refusal(short):
        raise UnsupportedArchitectureError(f"torchvision/{short} cannot be repaired: {reason}")
    family = torchvision_family(short)
    construct = partial(torchvision.models.get_model, short, weights=None)
    options = ("dropout",) if family in _WITH_DROPOUT else ()
    if family == "vision_transformer":
        patch = int(short.rpartition("_")[2])
        return Recipe(family, construct, (*options, "image_size"), image_multiple=patch)
    return Recipe(family, construct, options)


def _refusal(short: str) -> str | None:
    if short in torchvision.models.list_models(module=torchvision.models.quantization):
        return "its weights are quantized and have no gradient"
    if short not in _classifiers():
        return "it is no image classifier"
    return _REFUSED.get(short)


def torchvision_family(short: str) -> str:
    """Name the torchvision module that defines the model, such as ``resnet`` for ``resnext50_32x4d``."""
    module: str = torchvision.models.get_model_builder(short).__module__
    return module.rpartition(".")[2]
