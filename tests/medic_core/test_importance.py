"""The importance of neurons and the cloning loss, held against their definitions written out as loops."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medic_core.importance import cloning_loss, neuron_importance

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
    weights = neuron_importance(activation, gradient, temperature=temperature)
    torch.testing.assert_close(weights, importance_by_definition(activation, gradient, temperature))
    assert (weights.flatten(1).sum(dim=1) <= 1 + 1e-12).all()  # Cauchy-Schwarz


@given(SHAPES, st.integers(0, 2**31))
def test_without_any_impact_the_weights_are_the_root_of_a_softmax(shape: tuple[int, ...], seed: int) -> None:
    activation = drawn(1, shape, seed)[0]
    weights = neuron_importance(activation, torch.zeros_like(activation), temperature=2.0)
    neurons = activation[0].numel()
    softmax = (2.0 * activation).flatten(1).softmax(dim=1).view_as(activation)
    torch.testing.assert_close(weights, (softmax / neurons).sqrt())


@given(SHAPES, st.integers(0, 2**31))
def test_the_cloning_loss_agrees_with_its_definition(shape: tuple[int, ...], seed: int) -> None:
    taught, cloned, importance, spread = drawn(4, shape, seed)
    importance, std = importance.abs(), spread[:1].abs() + 0.1
    loss = cloning_loss(taught, cloned, importance, std=std)
    by_hand = 0.0
    for sample in range(shape[0]):
        terms = zip(
            taught[sample].flatten().tolist(),
            cloned[sample].flatten().tolist(),
            importance[sample].flatten().tolist(),
            std[0].flatten().tolist(),
            strict=True,
        )
        by_hand += sum(weight * ((t - c) / sigma) ** 2 for t, c, weight, sigma in terms) / shape[0]
    assert math.isclose(float(loss), by_hand, rel_tol=1e-9)
