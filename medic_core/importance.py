"""How much each neuron matters on clean data (Eq. 2 to 4), and the loss that clones the ones that do (Eq. 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medic_core.activations import Statistics

EPSILON = 1e-5
"""Beside σ, where the activation is standardised."""


Impact = Literal["signed", "magnitude", "relative"]


def neuron_importance(activation: Tensor, impact: Tensor) -> Tensor:
    """Weigh each neuron by how strongly it fires and how much the loss depends on it (Eq. 4).

    Args:
        activation: ``τ (f* − μ) / σ`` of Eq. 2, the logits of the first softmax, ``(batch, *neurons)``.
        impact: ``τ σ ∂L/∂f*`` of Eq. 3, or a variant of it, the logits of the second; same shape.

    Returns:
        Weights of the same shape, not negative; one sample's sum to at most 1.
    """
    fires = activation.flatten(1).softmax(dim=1)
    matters = impact.flatten(1).softmax(dim=1)
    return fires.mul_(matters).sqrt_().view_as(activation)


def layer_importance(
    output: Tensor,
    gradient: Tensor | None,
    statistics: Statistics,
    *,
    temperature: float,
    impact: Impact,
    normalize: bool,
    impact_alone: bool = False,
) -> Tensor:
    """Weigh the neurons of one layer of the suspect (Eq. 2 to 4).

    Args:
        output: Of the layer, ``(samples, *neurons)``.
        gradient: Of the suspect's loss, where it is read, same shape; None: Eq. 2 alone weighs.
        statistics: μ and σ, broadcastable to the shape.
        temperature: τ, above 0; larger puts the weight on fewer neurons.
        impact: Eq. 3 takes the gradient with its sign, its magnitude, or its magnitude relative to the sample's mean.
        normalize: Whether one sample's weights are divided by their sum; those of one criterion sum to 1 anyway.
        impact_alone: Whether Eq. 3 alone weighs.

    Returns:
        Weights of the same shape and memory format, a tensor of its own; one sample's sum to at most 1, if normalized
        to 1.
    """
    order = _memory_order(output)
    one_softmax = normalize and gradient is not None and not impact_alone
    if one_softmax:  # √(a·b) / Σ √(a·b) of two softmaxes is one softmax, of the mean of their logits
        temperature = temperature / 2
    mean, std = statistics.mean.permute(order), statistics.std.permute(order)
    logits: list[Tensor] = []
    if not impact_alone:
        scale = temperature / (std + EPSILON)
        logits.append(torch.addcmul(-mean * scale, output.permute(order), scale))
    if gradient is not None:
        matters, factor = _impact(gradient.permute(order), std, impact, temperature)
        logits.append(logits.pop().addcmul_(matters, factor) if one_softmax else matters * factor)
    weights = neuron_importance(*logits) if len(logits) == 2 else logits[0].flatten(1).softmax(dim=1)
    return weights.view_as(logits[0]).permute([order.index(axis) for axis in range(len(order))])


def _impact(gradient: Tensor, std: Tensor, kind: Impact, temperature: float) -> tuple[Tensor, Tensor]:
    """Two factors of the logits of Eq. 3, whose product need not be stored where it is only added to something.

    ``relative`` logits have mean τ over a sample's neurons, whatever the loss is scaled by.
    """
    if kind == "signed":
        return gradient, temperature * std
    weighed = (gradient * std).abs_()
    if kind == "magnitude":
        return weighed, torch.full_like(std, temperature)
    mean = weighed.flatten(1).mean(dim=1).clamp(min=1e-30)  # a sample without gradient stays at 0, not NaN
    return weighed, (temperature / mean).view(-1, *[1] * (weighed.dim() - 1))


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Axes such that a sample's neurons lie in line, so that nothing is copied to flatten them."""
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return (0, 2, 3, 1)
    return tuple(range(tensor.dim()))


@dataclass(frozen=True)
class CloningLoss:
    """One layer's part of Eq. 1 for one batch, with its gradient, which is linear in what is at hand anyway.

    Attributes:
        value: Scalar: summed over neurons, averaged over the batch.
        gradient: Of λ times ``value`` by the clone's output, same shape: 0 where that is not compared.
    """

    value: Tensor
    gradient: Tensor


def cloning_loss(
    weights: Tensor, taught: Tensor, cloned: Tensor, std: Tensor, *, weight: float, batch: int
) -> CloningLoss:
    """Weighted squared distance of suspect and clone at one layer, in units of σ (Eq. 1).

    No autograd graph is built: the weights are constants, so the gradient by the clone is ``−2 w (f* − f) / σ²``.

    Note:
        Algorithm 1 sums over the batch; all presets take the mean, which is consistent with cross-entropy's.

    Args:
        weights: Importance, ``(samples, *neurons)``; overwritten.
        taught: What the suspect put out where the two are compared, same shape; overwritten.
        cloned: What the clone did, and behind that what it did of images which are not compared.
        std: σ, broadcastable to the shape.
        weight: λ, by which the gradient is multiplied.
        batch: Samples of the whole batch, of which these may be a part: what sums are divided by.
    """
    samples = len(taught)
    apart = taught.sub_(cloned[:samples])
    gradient = weights
    if samples < len(cloned):
        gradient = torch.empty_like(cloned)  # in its memory format: in another, what comes after is slow
        gradient[samples:] = 0
    pull = torch.mul(weights.mul_(apart), -2 * weight / (batch * std.square()), out=gradient[:samples])
    order = _memory_order(pull)
    value = torch.dot(pull.permute(order).flatten(), apart.permute(order).flatten()) / (-2 * weight)
    return CloningLoss(value, gradient)
