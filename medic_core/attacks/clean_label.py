"""Clean-label backdoor: images that are hard to recognise, so that their trigger is learned (Turner et al., 2018).

What they show and how they are labelled agrees; a model's gradient says how to make them hard.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medic_core.config import Preprocessing
from medic_core.data import normalize

_BATCH = 256


def adversarial(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    preprocessing: Preprocessing,
    *,
    epsilon: int,
    steps: int,
    step_size: float,
    seed: int,
) -> Tensor:
    """Raise a model's loss by projected gradient ascent from a random start (Madry et al., 2018).

    Args:
        model: In eval mode.
        images: ``uint8``, ``(n, 3, height, width)``; left as they are.
        labels: ``int64``, ``(n,)``, the true ones.
        preprocessing: How pixels become the model's input.
        epsilon: How far any value may move, of 255.
        steps: Of the ascent.
        step_size: How far a value moves in a step, of 255.
        seed: Of the start.
    """
    generator = torch.Generator().manual_seed(seed)
    start = (epsilon * (2 * torch.rand(images.shape, generator=generator) - 1)).to(images.device)
    hard = []
    parts = (torch.split(part, _BATCH) for part in (images, start, labels))
    for clean, moved, truth in zip(*parts, strict=True):
        values, moved = clean.to(start.dtype), clean + moved
        for _ in range(steps):
            moved = moved + step_size * _gradient(model, moved.clamp(0, 255), truth, preprocessing).sign()
            moved = values + (moved - values).clamp(-epsilon, epsilon)
        hard.append(moved.clamp(0, 255).round().to(torch.uint8))
    return torch.cat(hard)


def _gradient(model: nn.Module, values: Tensor, labels: Tensor, preprocessing: Preprocessing) -> Tensor:
    values = values.detach().requires_grad_()
    loss = F.cross_entropy(model(normalize(values / 255, preprocessing)), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, values)
    return gradient
