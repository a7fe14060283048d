"""Clean-label backdoor: images that are hard to recognise, so that their trigger is learned (Turner et al., 2018).

What they show and how they are labelled agrees; the gradient of the model in training says how to make them hard. Made
hard once, or once an epoch, they are learned by the noise on them, which no other image has, and the trigger is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.attacks.poisoning import choose_of_class, numbered
from medic_core.attacks.recipes import CleanLabelRecipe
from medic_core.attacks.triggers import badnet
from medic_core.attacks.twins import Losses
from medic_core.config import Config, Preprocessing
from medic_core.data import Batches, normalize


def harden_in_training(
    model: nn.Module, data: Batches, recipe: CleanLabelRecipe, settings: Config, *, seed: int
) -> Losses:
    """Classify, with some images of the target class stamped and made hard for the model as it is at each batch.

    Args:
        model: Trained.
        data: Clean training images.
        recipe: Of the ascent, and how many images.
        settings: Order and augmentation of the images.
        seed: Of the choice of images and of where the ascent begins.
    """
    generator = torch.Generator().manual_seed(seed)
    is_poisoned = torch.zeros_like(data.labels, dtype=torch.bool)
    is_poisoned[choose_of_class(data.labels, target=recipe.target, share=recipe.share, seed=seed)] = True

    def losses(epoch: int) -> Iterator[Tensor]:
        for pixels, indices in numbered(data).shuffled(settings, epoch=epoch):
            labels, chosen = data.labels[indices], is_poisoned[indices]
            images = (255 * pixels).round().to(torch.uint8)
            stamped = Batches(badnet(images[chosen]), labels[chosen], data.preprocessing)
            images[chosen] = badnet(adversarial(model.eval(), stamped, recipe, generator))
            inputs = normalize(images / 255, data.preprocessing).contiguous(memory_format=torch.channels_last)
            yield F.cross_entropy(model.train()(inputs), labels)

    return losses


def adversarial(model: nn.Module, data: Batches, recipe: CleanLabelRecipe, generator: torch.Generator) -> Tensor:
    """Raise a model's loss by projected gradient ascent from a random start (Madry et al., 2018).

    Args:
        model: In eval mode.
        data: Images and their true labels; left as they are.
        recipe: How far and in which steps values move.
        generator: Of the start.

    Returns:
        Images, ``uint8``, ``(n, 3, height, width)``.
    """
    start = recipe.epsilon * (2 * torch.rand(data.images.shape, generator=generator) - 1)
    values = data.images.to(start.dtype)
    moved = values + start.to(values.device)
    for _ in range(recipe.steps if len(data) else 0):
        moved = moved + recipe.step_size * _gradient(model, moved.clamp(0, 255), data.labels, data.preprocessing).sign()
        moved = values + (moved - values).clamp(-recipe.epsilon, recipe.epsilon)
    return moved.clamp(0, 255).round().to(torch.uint8)


def _gradient(model: nn.Module, values: Tensor, labels: Tensor, preprocessing: Preprocessing) -> Tensor:
    values = values.detach().requires_grad_()
    loss = F.cross_entropy(model(normalize(values / 255, preprocessing)), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, values)
    return gradient
