"""Whether a suspect can be sanitized at all, before any training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from medic_core.data import Batches
from medic_core.evaluation import Share, accuracy, confusion_matrix

_OF_THE_MACHINE = ("allocate memory", "out of memory", "CUDA", "CUBLAS", "CUDNN", "cuDNN")
"""Parts of what torch says where not the model is at fault; it has no classes for them."""


@dataclass(frozen=True)
class ModelProblem:
    """One reason, with a stable code and what to do about it."""

    code: str
    detail: str


def problems_with(model: nn.Module, clean: Batches, *, num_classes: int) -> list[ModelProblem]:
    """Return every reason why ``model`` cannot be sanitized with ``clean``; empty when it can.

    Args:
        model: In eval mode, on the device of the images.
        clean: Clean labelled images.
        num_classes: How many logits the model must return.
    """
    if found := output_problems(model, clean, num_classes=num_classes):
        return found
    right = accuracy(confusion_matrix(model, clean, num_classes=num_classes))
    if above_chance(right, num_classes=num_classes):
        return []
    low, high = right.interval
    return [
        ModelProblem(
            "baseline_below_chance",
            f"The model gets only {right.count} of {right.n} clean images right ({right.value:.1%}, 95 % interval "
            f"{low:.1%} to {high:.1%}; at least {minimum_accuracy(num_classes):.1%} is needed at its lower end). Check "
            "the labels, the order of the class names, and the preprocessing (range, mean, std, color order).",
        )
    ]


def output_problems(model: nn.Module, images: Batches, *, num_classes: int) -> list[ModelProblem]:
    """Return every reason why ``model`` is no classifier of ``images`` at all, whatever it calls them.

    Args:
        model: In eval mode, on the device of the images.
        images: Of any kind; the first batch is looked at.
        num_classes: How many logits the model must return.

    Raises:
        RuntimeError: The machine fails, such as for want of memory.
    """
    if num_classes < 2:
        return [ModelProblem("model_output_invalid", "The model knows one class: it tells nothing apart.")]
    inputs, _ = next(images.in_order())
    try:
        with torch.no_grad():
            logits = model(inputs)
    except (RuntimeError, AssertionError, ValueError) as error:
        if any(text in str(error) for text in _OF_THE_MACHINE):
            raise
        detail = f"The model does not take images of {inputs.shape[2]}×{inputs.shape[3]}: {error}"
        return [ModelProblem("model_input_rejected", detail)]
    if not isinstance(logits, torch.Tensor) or logits.shape != (len(inputs), num_classes):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        detail = f"The model returned {shape} for {len(inputs)} images, not logits for {num_classes} classes."
        return [ModelProblem("model_output_invalid", detail)]
    if not bool(logits.isfinite().all()):
        return [ModelProblem("model_not_finite", "The model returns NaN or infinite logits.")]
    return []


def minimum_accuracy(num_classes: int) -> float:
    """Clean accuracy that the lower Wilson bound must exceed: a fifth of the way from chance to perfect."""
    chance = 1 / num_classes
    return chance + 0.2 * (1 - chance)


def above_chance(right: Share, *, num_classes: int) -> bool:
    """Whether a clean accuracy is well above chance; with wrong labels or preprocessing it is not."""
    return right.interval[0] > minimum_accuracy(num_classes)
