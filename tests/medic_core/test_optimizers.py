"""Every parameter is stepped once, matrices by Muon whatever their memory looks like; rates follow their schedule."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medic_core.config import ScratchConfig
from medic_core.removal.optimizers import (
    ADAM_SHARE,
    LARGEST_SIDE,
    build_optimizers,
    orthogonalized,
    rate_share,
    set_rates,
)

MUON = ScratchConfig(optimizer="muon", learning_rate=0.1)


def network() -> nn.Module:
    """Every kind of weight: of convolutions, depthwise or not, a linear layer, a normalisation, and of no layer."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1), nn.Flatten()
    )
    net.extend([nn.Linear(6, 2), nn.Linear(2, 6), nn.Linear(6, 2)])
    net.register_parameter("token", nn.Parameter(torch.randn(2, 1, 6)))
    return net


def with_gradients(net: nn.Module, *, seed: int = 1) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for weight in net.parameters():
        weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    return {name: weight.detach().clone() for name, weight in net.named_parameters()}


@pytest.mark.parametrize("optimizer", ["muon", "adam", "sgd"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_every_parameter_is_stepped_and_none_twice(optimizer: str, memory_format: torch.memory_format) -> None:
    net = network().to(memory_format=memory_format)
    before = with_gradients(net)
    optimizers = build_optimizers(net, ScratchConfig(optimizer=optimizer))
    stepped = [parameter for each in optimizers for group in each.param_groups for parameter in group["params"]]
    assert sorted(each.data_ptr() for each in stepped) == sorted(each.data_ptr() for each in net.parameters())
    for each in optimizers:
        each.step()
    assert all(not torch.equal(weight, before[name]) for name, weight in net.named_parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolutions_and_linear_layers_are_stepped_by_muon(memory_format: torch.memory_format) -> None:
    """Three steps, beside the definition in float64 and beside torch's own, which iterates in bfloat16."""
    net = network().double().to(memory_format=memory_format)
    config = ScratchConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.3)
    names = ("0.weight", "3.weight", "5.weight", "6.weight", "7.weight")
    defined = {name: net.get_parameter(name).detach().flatten(1).clone() for name in names}
    averages = {name: torch.zeros_like(matrix) for name, matrix in defined.items()}
    theirs = {name: nn.Parameter(matrix.clone()) for name, matrix in defined.items()}
    torchs = torch.optim.Muon(theirs.values(), lr=0.1, momentum=0.9, weight_decay=0.3)
    optimizers = build_optimizers(net, config)
    for step in range(3):
        with_gradients(net, seed=step)
        for name, matrix in defined.items():
            gradient = net.get_parameter(name).grad
            assert gradient is not None
            theirs[name].grad = gradient.flatten(1).clone()
            averages[name] = 0.9 * averages[name] + 0.1 * gradient.flatten(1)
            direction = 0.9 * averages[name] + 0.1 * gradient.flatten(1)
            rate = 0.1 * max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.copy_(matrix - 0.1 * 0.3 * matrix - rate * newton_schulz(direction))
        for each in (*optimizers, torchs):
            each.step()
    for name, matrix in defined.items():
        after = net.get_parameter(name).detach().flatten(1)
        torch.testing.assert_close(after, matrix, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(after, theirs[name].detach(), rtol=0, atol=0.02)


def newton_schulz(matrix: Tensor) -> Tensor:
    """The quintic iteration of Jordan et al. (2024), on the singular values themselves."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return left @ values.diag() @ right


@given(st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12)), st.integers(0, 2**31))
def test_orthogonalized_matrices_keep_their_singular_vectors(shape: tuple[int, int, int], seed: int) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalized(matrices) @ right.mT
    stretched = torch.diagonal(found, dim1=1, dim2=2)
    torch.testing.assert_close(found, torch.diag_embed(stretched), rtol=0, atol=1e-6)
    sizeable = values > 0.05 * torch.linalg.matrix_norm(matrices)[:, None]
    assert ((stretched[sizeable] > 0.5) & (stretched[sizeable] < 1.5)).all()


def test_all_else_is_stepped_by_adam_at_a_share_of_the_rate() -> None:
    net = network()
    before = with_gradients(net)
    for each in build_optimizers(net, MUON):
        each.step()
    for name in ("0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.bias", "5.bias", "6.bias", "token"):
        moved = (net.get_parameter(name).detach() - before[name]).abs()  # Adam's first step is the rate itself
        torch.testing.assert_close(moved, torch.full_like(moved, ADAM_SHARE * 0.1), rtol=1e-3, atol=0)


def test_a_matrix_whose_smaller_side_is_too_large_to_orthogonalize_is_stepped_by_adam() -> None:
    model = nn.Sequential(*(nn.Linear(columns, rows, device="meta") for rows, columns in SIDES))
    stepped = {
        id(weight) for group in build_optimizers(model, ScratchConfig())[0].param_groups for weight in group["params"]
    }
    assert [id(layer.weight) in stepped for layer in model] == [min(sides) <= LARGEST_SIDE for sides in SIDES]


SIDES = ((10, 9216), (2048, 25088), (9216, 2048), (2049, 9216), (4096, 4096))


def test_gradients_are_cleared() -> None:
    net = network()
    with_gradients(net)
    for each in build_optimizers(net, MUON):
        each.zero_grad()
    assert all(weight.grad is None for weight in net.parameters())


def test_a_share_of_the_rate_reaches_every_optimizer() -> None:
    optimizers = build_optimizers(network(), MUON)
    set_rates(optimizers, 0.5)
    assert [group["lr"] for each in optimizers for group in each.param_groups] == pytest.approx([0.05, 0.01])


def test_cosine_is_torchs_own_schedule_per_epoch() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7)
    for epoch in range(7):
        for step in (5 * epoch, 5 * epoch + 4):
            expected = optimizer.param_groups[0]["lr"]
            assert math.isclose(0.01 * rate_share("cosine", step, steps=5, epochs=7), expected, rel_tol=1e-9)
        optimizer.step()
        scheduler.step()


def test_steps_are_those_that_the_authors_fine_tune_by_and_constant_is_constant() -> None:
    shares = {epoch: rate_share("steps", 3 * epoch + 2, steps=3, epochs=40) for epoch in (0, 1, 2, 19, 20, 29, 30)}
    assert shares == {0: 1.0, 1: 1.0, 2: 0.1, 19: 0.1, 20: 0.01, 29: 0.01, 30: 0.001}
    assert {rate_share("constant", step, steps=3, epochs=30) for step in range(90)} == {1.0}


@given(st.integers(1, 50), st.integers(1, 50))
def test_linear_rises_then_falls_and_never_leaves_its_bounds(epochs: int, steps: int) -> None:
    rates = [rate_share("linear", step, steps=steps, epochs=epochs) for step in range(epochs * steps)]
    top = rates.index(max(rates))
    assert 0 < min(rates) <= max(rates) <= 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
