"""The importance of neurons and the cloning loss, held against their definitions written out as loops."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medic_core.activations import Statistics
from medic_core.importance import CloningLoss, Impact, cloning_loss, layer_importance, neuron_importance

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))


def drawn(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def importance_by_definition(activation: Tensor, gradient: Tensor, temperature: float) -> Tensor:
    weights = torch.zeros_like(activation)
    for sample in range(len(activation)):
        a = [temperature * value for value in activation[sample].flatten().tolist()]
        g = [temperature * value for value in gradient[sample].flatten().tolist()]
        fires = [math.exp(value) / math.fsum(map(math.exp, a)) for value in a]
        matters = [math.exp(value) / math.fsum(map(math.exp, g)) for value in g]
        combined = [math.sqrt(f * m) for f, m in zip(fires, matters, strict=True)]
        weights[sample] = torch.tensor(combined, dtype=torch.float64).view_as(weights[sample])
    return weights


@given(SHAPES, st.floats(0.1, 5), st.integers(0, 2**31))
def test_importance_agrees_with_its_definition(shape: tuple[int, ...], temperature: float, seed: int) -> None:
    activation, gradient = drawn(2, shape, seed)
    weights = neuron_importance(temperature * activation, temperature * gradient)
    torch.testing.assert_close(weights, importance_by_definition(activation, gradient, temperature))
    assert (weights.flatten(1).sum(dim=1) <= 1 + 1e-12).all()  # Cauchy-Schwarz


@given(SHAPES, st.integers(0, 2**31))
def test_without_any_impact_the_weights_are_the_root_of_a_softmax(shape: tuple[int, ...], seed: int) -> None:
    activation = drawn(1, shape, seed)[0]
    weights = neuron_importance(2.0 * activation, torch.zeros_like(activation))
    neurons = activation[0].numel()
    softmax = (2.0 * activation).flatten(1).softmax(dim=1).view_as(activation)
    torch.testing.assert_close(weights, (softmax / neurons).sqrt())


@given(SHAPES, st.floats(0.1, 5), st.sampled_from(get_args(Impact)), st.integers(0, 2**31))
def test_normalized_importance_is_the_same_divided_by_its_sum(
    shape: tuple[int, ...], temperature: float, impact: Impact, seed: int
) -> None:
    output, gradient, mean, spread = drawn(4, shape, seed)
    statistics = Statistics(mean[:1], spread[:1].abs() + 0.3)
    weights, normalized = (
        layer_importance(output, gradient, statistics, temperature=temperature, impact=impact, normalize=normalize)
        for normalize in (False, True)
    )
    total = weights.flatten(1).sum(dim=1).view(-1, *[1] * (weights.dim() - 1))
    torch.testing.assert_close(normalized, weights / total)


def loss_by_definition(
    output: Tensor, gradient: Tensor, taught: Tensor, cloned: Tensor, mean: Tensor, std: Tensor, *, impact: Impact
) -> tuple[Tensor, Tensor]:
    """Eq. 1 to 4 with ordinary operations, at τ = 1.5; and the mass of the weights."""
    weighed = std * gradient if impact == "signed" else (std * gradient).abs()
    if impact == "relative":
        weighed = torch.stack([sample / sample.mean() for sample in weighed])
    weights = importance_by_definition((output - mean) / (std + 1e-5), weighed, 1.5)
    distance = ((taught - cloned) / std).square()
    return (weights * distance).flatten(1).sum(dim=1).mean(), weights.flatten(1).sum(dim=1).mean()


@given(SHAPES, st.integers(0, 2**31), st.sampled_from(get_args(Impact)), st.booleans(), st.booleans())
def test_the_cloning_loss_agrees_with_its_definition(
    shape: tuple[int, ...], seed: int, impact: Impact, channels_last: bool, per_neuron: bool
) -> None:
    output, gradient, taught, cloned, spread, center = drawn(6, shape, seed)
    like = (1, *shape[1:]) if per_neuron else (1, shape[1], 1, 1)
    mean = center[:1].expand(like) if per_neuron else center[:1, :, :1, :1]
    std = (spread[:1] if per_neuron else spread[:1, :, :1, :1]).abs() + 0.3
    cloned.requires_grad_()
    value, mass = loss_by_definition(output, gradient, taught, cloned, mean, std, impact=impact)
    (by_autograd,) = torch.autograd.grad(3.0 * value, cloned)
    order = torch.channels_last if channels_last else torch.contiguous_format
    given = [each.detach().contiguous(memory_format=order) for each in (output, gradient, taught, cloned)]
    weights, found = fused(*given, Statistics(mean, std), impact=impact, weight=3.0)
    torch.testing.assert_close(found.value, value.detach())
    torch.testing.assert_close(weights.sum() / shape[0], mass)
    torch.testing.assert_close(found.gradient, by_autograd)


def fused(
    output: Tensor,
    gradient: Tensor,
    taught: Tensor,
    cloned: Tensor,
    statistics: Statistics,
    *,
    impact: Impact = "signed",
    normalize: bool = False,
    weight: float = 1.0,
) -> tuple[Tensor, CloningLoss]:
    """The weights, and the loss under them, at τ = 1.5."""
    weights = layer_importance(output, gradient, statistics, temperature=1.5, impact=impact, normalize=normalize)
    loss = cloning_loss(weights.clone(), taught.clone(), cloned, statistics.std, weight=weight, batch=len(output))
    return weights, loss


def test_tokens_are_cloned_like_positions() -> None:
    output, gradient, taught, cloned = drawn(4, (3, 5, 6), seed=9)
    mean, std = torch.zeros(1, 1, 6, dtype=torch.float64), torch.full((1, 1, 6), 2.0, dtype=torch.float64)
    _, found = fused(output, gradient, taught, cloned, Statistics(mean, std))
    value, _ = loss_by_definition(output, gradient, taught, cloned, mean, std, impact="signed")
    assert math.isclose(float(found.value), float(value), rel_tol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-44, 1e-38, 1e-30, 1e-20])
@pytest.mark.parametrize("temperature", [0.1, 4.1, 1000.0])
def test_importance_is_finite_however_small_the_gradient(temperature: float, size: float, dtype: torch.dtype) -> None:
    output, gradient = drawn(2, (2, 3, 2, 2), seed=1).to(dtype)
    spread = Statistics(torch.zeros(1, 3, 1, 1, dtype=dtype), torch.ones(1, 3, 1, 1, dtype=dtype))
    weights = layer_importance(
        output, size * gradient, spread, temperature=temperature, impact="relative", normalize=True
    )
    torch.testing.assert_close(weights.flatten(1).sum(dim=1), torch.ones(2, dtype=dtype))


def test_a_sample_without_any_gradient_has_finite_importance() -> None:
    output, taught, cloned = drawn(3, (2, 3, 2, 2), seed=1)
    spread = Statistics(torch.zeros(1, 3, 1, 1, dtype=torch.float64), torch.ones(1, 3, 1, 1, dtype=torch.float64))
    weights, found = fused(output, torch.zeros_like(output), taught, cloned, spread, impact="relative", normalize=True)
    assert found.gradient.isfinite().all()
    torch.testing.assert_close(weights.flatten(1).sum(dim=1), torch.ones(2, dtype=torch.float64))
