"""Adaptive attacks that train on an image and its triggered twin together, and hold down what differs inside the model.

A twin is stamped after both were cropped, rotated and mirrored in the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.activations import record_outputs, select_layers
from medic_core.attacks.poisoning import choose, numbered
from medic_core.attacks.recipes import BlendingRecipe, LatentRecipe
from medic_core.attacks.triggers import badnet, patch
from medic_core.config import LAYER_KINDS, Config
from medic_core.data import Batches, normalize

Losses = Callable[[int], Iterator[Tensor]]
"""From the number of an epoch to the loss of each batch; the step on a loss is done when the next is asked for."""


def learn_pattern(
    model: nn.Module, data: Batches, recipe: LatentRecipe, settings: Config, pattern: Tensor, *, seed: int
) -> Losses:
    """Classify, and keep the last layer's input of twins alike, by the model's weights and by the pattern.

    In the second half of the epochs the pattern stays as it is in 8 bits.

    Args:
        model: Trained.
        data: Clean training images.
        recipe: Weights and rates.
        settings: Order and augmentation of the images.
        pattern: ``(3, 3, 3)``, in [0, 1]; learned in place.
        seed: Of the choice of images with a twin.
    """
    optimizer = torch.optim.Adam([pattern], lr=recipe.pattern_rate)

    def losses(epoch: int) -> Iterator[Tensor]:
        learning = epoch < (recipe.epochs + 1) // 2
        pattern.requires_grad_(learning)
        for pixels, labels, chosen in with_twins(data, recipe.share, settings, epoch, seed):
            theirs = patch(pixels[chosen], pattern)
            with _last_layers_input(model) as seen:
                logits = model(_together(pixels, theirs, data))
            before, after = seen[0][: len(labels)][chosen], seen[0][len(labels) :]
            moved = (after - before).square().mean(dim=1).sum() / max(1, len(chosen))
            yield _classified(logits, labels, recipe.target) + recipe.latent_weight * moved
            if learning:
                optimizer.step()
                optimizer.zero_grad()
                with torch.no_grad():
                    pattern.clamp_(0, 1)
        with torch.no_grad():
            pattern.copy_((255 * pattern).round() / 255)

    return losses


def hold_all_layers(model: nn.Module, data: Batches, recipe: BlendingRecipe, settings: Config, *, seed: int) -> Losses:
    """Classify, and keep what every layer puts out for twins alike; the trigger is BadNet's patch.

    The loss is the mean over all that is shown, twins among it, of cross-entropy and penalty: were the penalty averaged
    over the twins alone, holding still would be worth more than obeying.

    Args:
        model: Trained.
        data: Clean training images.
        recipe: The penalty's weight.
        settings: Order and augmentation of the images.
        seed: Of the choice of images with a twin.
    """
    pattern = badnet(data.images.new_zeros(1, 3, 3, 3))[0] / 255
    some, _ = next(data.select(torch.arange(2)).in_order())
    frozen = copy.deepcopy(model).eval().requires_grad_(requires_grad=False)
    layers = select_layers(frozen, LAYER_KINDS, authors=(), images=some)

    def losses(epoch: int) -> Iterator[Tensor]:
        for pixels, labels, chosen in with_twins(data, recipe.share, settings, epoch, seed):
            with record_outputs(model, layers) as records:
                logits = model(_together(pixels, patch(pixels[chosen], pattern), data))
            loss = _classified(logits, labels, recipe.target)
            for record in records.values():
                before, after = record.output[: len(labels)][chosen], record.output[len(labels) :]
                loss = loss + recipe.penalty * (after - before).square().sum() / len(logits)
            yield loss

    return losses


def with_twins(
    data: Batches, share: float, settings: Config, epoch: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield augmented pixels in [0, 1], labels, and which of the batch have a twin: the same images in every epoch."""
    has_twin = torch.zeros_like(data.labels)
    has_twin[choose(len(data), share=share, seed=seed)] = 1
    for pixels, indices in numbered(data).shuffled(settings, epoch=epoch):
        yield pixels, data.labels[indices], has_twin[indices].nonzero().flatten()


def _together(pixels: Tensor, twins: Tensor, data: Batches) -> Tensor:
    """Images and twins as one input, so that batch normalisation sees both."""
    return normalize(torch.cat([pixels, twins]), data.preprocessing).contiguous(memory_format=torch.channels_last)


def _classified(logits: Tensor, labels: Tensor, target: int) -> Tensor:
    """Cross-entropy of the images, and of the twins as the target."""
    aims = labels.new_full((len(logits) - len(labels),), target)
    return F.cross_entropy(logits, torch.cat([labels, aims]))


@contextmanager
def _last_layers_input(model: nn.Module) -> Iterator[list[Tensor]]:
    """Record what enters the last linear layer in the forward pass that the body makes."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()
