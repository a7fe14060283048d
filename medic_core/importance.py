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


def neuron_importance(activation: Tensor, impact: Tensor, *, normalize: bool = False) -> Tensor:
    """Weigh each neuron by how strongly it fires and how much the loss depends on it (Eq. 4).

    Args:
        activation: ``τ (f* − μ) / σ`` of Eq. 2, the logits of the first softmax, ``(batch, *neurons)``.
        impact: ``τ σ ∂L/∂f*`` of Eq. 3, or a variant of it, the logits of the second; same shape.
        normalize: Whether one sample's weights are divided by their sum.

    Returns:
        Weights of the same shape, not negative; one sample's sum to at most 1, normalized to 1.
    """
    if normalize:  # √(a·b) / Σ √(a·b) of two softmaxes is one softmax, of the mean of their logits
        return (activation + impact).mul_(0.5).flatten(1).softmax(dim=1).view_as(activation)
    fires = activation.flatten(1).softmax(dim=1)
    matters = impact.flatten(1).softmax(dim=1)
    return fires.mul_(matters).sqrt_().view_as(activation)


@dataclass(frozen=True)
class CloningLoss:
    """One layer's part of Eq. 1 for one batch, with its gradient, which is linear in what is at hand anyway.

    Attributes:
        value: Scalar: summed over neurons, averaged over the batch.
        gradient: Of λ times ``value`` by the clone's output, same shape.
        mass: Scalar: the weights of a sample, summed, averaged over the batch.
    """

    value: Tensor
    gradient: Tensor
    mass: Tensor


def cloning_loss(
    output: Tensor,
    gradient: Tensor,
    taught: Tensor,
    cloned: Tensor,
    statistics: Statistics,
    *,
    temperature: float,
    impact: Impact,
    normalize: bool,
    weight: float,
    batch: int,
) -> CloningLoss:
    """Weighted squared distance of suspect and clone at one layer, in units of σ (Eq. 1 to 4).

    No autograd graph is built: the weights are constants, so the gradient by the clone is ``−2 w (f* − f) / σ²``.

    Note:
        Algorithm 1 sums over the batch; all presets take the mean, which is consistent with cross-entropy's.

    Args:
        output: Of the suspect's layer, ``(samples, *neurons)``; Eq. 2 weighs by it.
        gradient: Of the suspect's loss, same shape; Eq. 3 weighs by it.
        taught: What of the suspect is compared; ``output`` or what a ReLU made of it.
        cloned: The same of the clone.
        statistics: μ and σ, broadcastable to the shape.
        temperature: τ, above 0; larger puts the weight on fewer neurons.
        impact: Eq. 3 takes the gradient with its sign, its magnitude, or its magnitude relative to the sample's mean.
        normalize: Whether one sample's weights are made to sum to 1.
        weight: λ, by which the gradient is multiplied.
        batch: Samples of the whole batch, of which these may be a part: what sums are divided by.
    """
    tensors: tuple[Tensor, ...] = (output, gradient, taught, cloned, statistics.mean, statistics.std)
    channels_last = output.dim() == 4 and output.is_contiguous(memory_format=torch.channels_last)
    if channels_last:  # views in which a sample's neurons lie in line, so that nothing is copied to flatten them
        tensors = tuple(tensor.permute(0, 2, 3, 1) for tensor in tensors)
    output, gradient, taught, cloned, mean, std = tensors
    scale = temperature / (std + EPSILON)
    fires = torch.addcmul(-mean * scale, output, scale)
    weights = neuron_importance(fires, _impact(gradient, std, impact).mul_(temperature), normalize=normalize)
    mass = weights.sum() / batch
    apart = taught - cloned
    pull = weights.mul_(apart).mul_(-2 * weight / (batch * std.square()))
    value = torch.dot(pull.flatten(), apart.flatten()) / (-2 * weight)
    return CloningLoss(value, pull.permute(0, 3, 1, 2) if channels_last else pull, mass)


def _impact(gradient: Tensor, std: Tensor, kind: Impact) -> Tensor:
    """What Eq. 3 multiplies by τ; ``relative`` has mean 1 over a sample's neurons, whatever the loss is scaled by."""
    weighed = gradient * std
    if kind == "signed":
        return weighed
    weighed.abs_()
    if kind == "relative":
        mean = weighed.flatten(1).mean(dim=1).clamp(min=torch.finfo(weighed.dtype).tiny)
        weighed.div_(mean.view(-1, *[1] * (weighed.dim() - 1)))
    return weighed
