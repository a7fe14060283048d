"""How much each neuron matters on clean data (Eq. 2 to 4), and the loss that clones the ones that do (Eq. 1)."""

from __future__ import annotations

from torch import Tensor


def neuron_importance(activation: Tensor, gradient: Tensor, *, temperature: float) -> Tensor:
    """Weigh each neuron by how strongly it fires and how much the loss depends on it (Eq. 4).

    Args:
        activation: Standardised output of one layer, ``(f* − μ) / σ`` of Eq. 2, ``(batch, *neurons)``.
        gradient: Loss gradient at that output times σ, signed or by magnitude (Eq. 3), same shape.
        temperature: τ, above 0; larger puts the weight on fewer neurons.

    Returns:
        Weights of the same shape, not negative; one sample's weights sum to at most 1.
    """
    fires = (temperature * activation).flatten(1).softmax(dim=1)
    matters = (temperature * gradient).flatten(1).softmax(dim=1)
    return (fires * matters).sqrt().view_as(activation)


def cloning_loss(taught: Tensor, cloned: Tensor, importance: Tensor, *, std: Tensor) -> Tensor:
    """Weighted squared distance of one layer's outputs in units of σ (Eq. 1).

    Note:
        Algorithm 1 sums over the batch; both presets take the mean, which is consistent with cross-entropy's.

    Args:
        taught: Suspect's output, ``(batch, *neurons)``, detached.
        cloned: Clone's output, same shape.
        importance: Weights, same shape, detached.
        std: σ, broadcastable to the shape.

    Returns:
        A scalar: summed over neurons, averaged over the batch.
    """
    distance = ((taught - cloned) / std).square()
    return (importance * distance).flatten(1).sum(dim=1).mean()
