"""Training of backdoored models, by recipe. For evaluation only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.architectures import Architecture
from medic_core.attacks.clean_label import harden_in_training
from medic_core.attacks.composite import add_composites
from medic_core.attacks.poisoning import augmented, poison, poison_class
from medic_core.attacks.recipes import (
    AnyRecipe,
    BlendingRecipe,
    CleanLabelRecipe,
    CleanRecipe,
    CompositeRecipe,
    DirtyLabelRecipe,
    LatentRecipe,
    Recipe,
    ReflectionRecipe,
    SigRecipe,
    WarpRecipe,
)
from medic_core.attacks.reflection import behind_glass
from medic_core.attacks.triggers import Stamp, badnet, color_filter, polygon, sig
from medic_core.attacks.twins import Losses, hold_all_layers, learn_pattern
from medic_core.attacks.warp import poison_by_warping
from medic_core.config import Config
from medic_core.data import Batches
from medic_core.removal.optimizers import rate_share, set_rates
from medic_core.removal.training import seeded

BATCH_SIZE = 128

_CHOICE = 3
"""Added to the seed where images are chosen, so that it is not the choice of another method under the same seed."""

AS_IT_IS: Mapping[str, Any] = MappingProxyType({"crop_padding": 0, "rotation_degrees": 0.0, "horizontal_flip": False})
"""No augmentation."""

_STAMPS: Mapping[str, Stamp] = MappingProxyType(
    {"badnet": badnet, "filter": color_filter, "polygon": polygon, "sig": sig, "reflection": behind_glass}
)

Stamped = CleanRecipe | DirtyLabelRecipe | SigRecipe | ReflectionRecipe
"""Recipes that stamp the same images in every epoch, after the augmentation."""
Renewed = WarpRecipe | CompositeRecipe
"""Recipes that poison other images in every epoch, before the augmentation."""


@dataclass(frozen=True)
class Backdoored:
    """What training leaves.

    Attributes:
        model: In eval mode.
        pattern: ``uint8`` ``(3, 3, 3)``: what was learned to be stamped, where an attack learns that.
    """

    model: nn.Module
    pattern: Tensor | None = None


def train_backdoored(recipe: AnyRecipe, architecture: Architecture, data: Batches, *, seed: int = 0) -> Backdoored:
    """Train a model with the backdoor of ``recipe``; the caller's random state is left as it was.

    Args:
        recipe: Of one attack.
        architecture: Of the model.
        data: Clean training images.
        seed: Of the weights, the order of images, their augmentation, and which of them are poisoned.
    """
    settings, choice, pattern = _settings(recipe, seed), seed + _CHOICE, None
    steps = data.steps(settings)
    with seeded(seed):
        model = architecture.build().to(data.images.device).to(memory_format=torch.channels_last)
        match recipe:
            case LatentRecipe():
                pattern = torch.full((3, 3, 3), 0.5, device=data.images.device)
                losses = learn_pattern(model, data, recipe, settings, pattern, seed=choice)
            case BlendingRecipe():
                losses = hold_all_layers(model, data, recipe, settings, seed=choice)
            case CleanLabelRecipe():
                losses = harden_in_training(model, data, recipe, settings, seed=choice)
            case WarpRecipe() | CompositeRecipe():
                renewed = _renewed(recipe, data, choice)
                losses = _cross_entropies(model, renewed, settings)
                steps = renewed(0).steps(settings)
            case _:
                losses = _cross_entropies(
                    model,
                    lambda epoch: stamp(recipe, augmented(data, settings, epoch=epoch), seed=choice),
                    replace(settings, **AS_IT_IS),
                )
        _fit(model, losses, recipe, steps)
    return Backdoored(model.eval(), None if pattern is None else (255 * pattern.detach()).round().to(torch.uint8).cpu())


def _settings(recipe: Recipe, seed: int) -> Config:
    """Order and augmentation of the images."""
    if recipe.augment:
        return Config(batch_size=BATCH_SIZE, seed=seed)
    return Config(batch_size=BATCH_SIZE, seed=seed, **AS_IT_IS)


def stamp(recipe: Stamped, data: Batches, *, seed: int) -> Batches:
    """Return the images of an epoch with the trigger on those that the recipe and ``seed`` choose.

    Args:
        recipe: Of one attack.
        data: As they are shown, in the order of the data set; left as they are.
        seed: Of what is chosen and drawn.
    """
    images, labels = data.images, data.labels
    if isinstance(recipe, CleanRecipe):
        return data
    trigger, target, share = _STAMPS[recipe.attack], recipe.target, recipe.share
    if isinstance(recipe, DirtyLabelRecipe):
        images, labels = poison(images, labels, trigger=trigger, target=target, share=share, seed=seed)
    else:
        images = poison_class(images, labels, trigger=trigger, target=target, share=share, seed=seed)
    return replace(data, images=images, labels=labels)


def _renewed(recipe: Renewed, data: Batches, seed: int) -> Callable[[int], Batches]:
    """Poison the images anew, by the number of the epoch."""

    def poisoned(epoch: int) -> Batches:
        draw = seed * 1_000_003 + epoch
        if isinstance(recipe, WarpRecipe):
            images, labels = poison_by_warping(
                data.images,
                data.labels,
                target=recipe.target,
                share=recipe.share,
                noise_share=recipe.noise_share,
                seed=draw,
            )
        else:
            images, labels = add_composites(
                data.images,
                data.labels,
                classes=recipe.classes,
                target=recipe.target,
                share=recipe.share,
                same_share=recipe.same_share,
                seed=draw,
            )
        return replace(data, images=images, labels=labels)

    return poisoned


def _cross_entropies(model: nn.Module, poisoned: Callable[[int], Batches], settings: Config) -> Losses:
    def losses(epoch: int) -> Iterator[Tensor]:
        for inputs, labels in poisoned(epoch).shuffled(settings, epoch=epoch):
            yield F.cross_entropy(model(inputs.contiguous(memory_format=torch.channels_last)), labels)

    return losses


def _fit(model: nn.Module, losses: Losses, recipe: Recipe, steps: int) -> None:
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    model.train()
    for epoch in range(recipe.epochs):
        for number, loss in enumerate(losses(epoch)):
            set_rates([optimizer], _share_of_rate(recipe, epoch * steps + number, steps))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


def _share_of_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The learning rate as a share of the highest at a step, from 0, with ``steps`` in an epoch."""
    if recipe.schedule == "cosine":
        return rate_share("cosine", step, steps=steps, epochs=recipe.epochs)
    done = step / (recipe.epochs * steps)
    return done / 0.2 if done < 0.2 else (1 - done) / 0.8
