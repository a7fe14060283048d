"""The paper's lemmas as properties, and Appendix C's two-neuron problem: what its Theorem 3 should have said."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.theory import margin_loss, regret_bound, sample_bound
from benchmarks.two_neurons import (
    Samples,
    accuracy,
    bound_at,
    descend,
    draw_samples,
    draw_suspects,
    gradient_terms,
    guaranteed_weight,
    importance,
    repair,
    success,
    summarize,
)

SEEDS = st.integers(0, 2**31)
SIZES = st.floats(-4, 2).map(lambda exponent: 10**exponent)
TRIGGERS = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)


def logits(count: int, seed: int, size: float) -> Tensor:
    """Batches of logits for one number of classes, each about ``size`` away from the same centre."""
    generator = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(2, 6, (), generator=generator))
    drawn = torch.randn(count + 1, 64, classes, generator=generator, dtype=torch.float64)
    return drawn[0] + size * drawn[1:]


def apart(one: Tensor, other: Tensor) -> Tensor:
    return (one - other).abs().amax(dim=1)


def problem(seed: int, count: int = 1000) -> tuple[Samples, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return draw_samples(count, generator), generator


def total_loss(w: Tensor, suspect: Tensor, weight: float, samples: Samples) -> Tensor:
    """Hinge plus λ times cloning loss as Theorem 3 states them."""
    hinge = (1 - samples.y * (samples.z @ w)).relu()
    return (hinge + weight * (samples.z @ suspect - samples.z @ w).square()).mean()


def slope_of_w2(w1: float, suspect: Tensor, weight: float, samples: Samples) -> float:
    w = torch.tensor([w1, 0.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(total_loss(w, suspect, weight, samples), w)
    return float(gradient[1])


@given(SEEDS, SIZES, st.floats(0.05, 20))
def test_lemma_1_margin_loss_changes_at_most_by_twice_gamma_times_the_largest_change(
    seed: int, size: float, gamma: float
) -> None:
    one, other = logits(2, seed, size)
    labels = torch.arange(64) % one.shape[1]
    first, second = margin_loss(one, labels, gamma=gamma), margin_loss(other, labels, gamma=gamma)
    assert ((first >= 0) & (first <= 1)).all()
    assert ((first - second).abs() <= 2 * gamma * apart(one, other) + 1e-12).all()


def test_lemma_1_is_attained_and_the_loss_is_that_of_eq_9() -> None:
    pair = torch.tensor([[0.3, 0.1, -1.0], [0.2, 0.2, -1.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0]], dtype=torch.float64)
    losses = margin_loss(pair, torch.zeros(4, dtype=torch.int64), gamma=2.0)
    torch.testing.assert_close(losses, torch.tensor([1 - 2 * 0.2, 1.0, 1.0, 0.0], dtype=torch.float64))
    assert math.isclose(losses[1] - losses[0], 2 * 2.0 * 0.1)


@given(SEEDS, SIZES)
def test_lemma_2_softmax_and_its_residual_change_at_most_by_half(seed: int, size: float) -> None:
    x, y, x2, y2 = logits(4, seed, size)
    assert (apart(x.softmax(1), x2.softmax(1)) <= apart(x, x2) / 2 + 1e-12).all()
    residual = apart(x.softmax(1) - y.softmax(1), x2.softmax(1) - y2.softmax(1))
    assert (residual <= (apart(x, x2) + apart(y, y2)) / 2 + 1e-12).all()


def test_lemma_2_bounds_the_residual_by_the_sum_of_both_changes_and_not_by_half_the_larger() -> None:
    x = torch.tensor([[5e-5, -5e-5]], dtype=torch.float64)
    residual = apart(x.softmax(1) - (-x).softmax(1), (-x).softmax(1) - x.softmax(1))
    assert residual > 0.999 * apart(x, -x)


@given(st.floats(0, 0.5), st.floats(1e-3, 1), st.floats(1e-6, 0.5), st.integers(1, 10**6))
def test_lemma_4_inverts_eq_6(complexity: float, margin: float, delta: float, count: int) -> None:
    enough = sample_bound(2 * complexity + margin, complexity, delta)
    assert regret_bound(math.ceil(enough), complexity, delta) <= 2 * complexity + margin + 1e-9
    regret = regret_bound(count, complexity, delta)
    assert math.isclose(sample_bound(regret, complexity, delta), count, rel_tol=1e-6)


def test_lemma_4_needs_a_regret_above_twice_the_complexity() -> None:
    with pytest.raises(ValueError, match="twice the complexity"):
        sample_bound(0.2, 0.1, 0.05)


@given(SEEDS, st.floats(0.1, 12), st.floats(-1, 12), st.floats(0.01, 100))
def test_theorem_3_corrected_the_bound_tells_the_sign_of_the_slope(
    seed: int, strength: float, w1: float, weight: float
) -> None:
    samples, generator = problem(seed, 100)
    suspect = draw_suspects(strength, TRIGGERS[:1], generator)
    bound = float(bound_at(torch.tensor([w1], dtype=torch.float64), suspect, samples))
    if math.isinf(bound):  # w₁ is still so far below w₁' that cloning itself raises w₂: every λ will do
        assert slope_of_w2(w1, suspect[0], weight, samples) <= 1e-12
    else:
        assert slope_of_w2(w1, suspect[0], 0.999 * bound, samples) <= 1e-12
        assert slope_of_w2(w1, suspect[0], 1.001 * bound + 1e-9, samples) > 0


@given(SEEDS, st.floats(0.1, 12))
def test_the_bound_never_rises_with_w1(seed: int, strength: float) -> None:
    samples, generator = problem(seed, 100)
    suspect = draw_suspects(strength, TRIGGERS[:1], generator)
    w1 = torch.linspace(0, 12, 50, dtype=torch.float64)
    bounds = bound_at(w1, suspect.expand(50, 2), samples).tolist()
    assert all(before >= after for before, after in pairwise(bounds))


@given(SEEDS, st.floats(0.1, 12), st.floats(0, 12), st.floats(0, 12))
def test_theorem_3_as_printed_asks_for_a_negative_weight(seed: int, strength: float, w1: float, w2: float) -> None:
    samples, generator = problem(seed, 100)
    suspect = draw_suspects(strength, TRIGGERS[:1], generator)[0]
    active = samples.y * (samples.z @ torch.tensor([w1, w2], dtype=torch.float64)) < 1
    divisor = samples.z.square().sum(dim=1) * (suspect[1] - w2)
    printed = (active * samples.y / divisor).unsqueeze(1) * samples.z
    assert (printed.mean(dim=0) <= 0).all()  # whichever of the two components is meant


@given(SEEDS, st.floats(0.1, 12), st.floats(-1, 12), st.floats(-1, 12), st.floats(0, 10))
def test_the_descent_follows_the_gradient(seed: int, strength: float, w1: float, w2: float, weight: float) -> None:
    samples, generator = problem(seed, 100)
    suspect = draw_suspects(strength, TRIGGERS[:1], generator)
    w = torch.tensor([[w1, w2]], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(total_loss(w[0], suspect[0], weight, samples), w)
    hinge, cloning = gradient_terms(w.detach(), suspect, samples)
    torch.testing.assert_close(2 * weight * cloning - hinge, expected)


@given(SEEDS, st.sampled_from([0.2, 0.5, 1.0, 2.0, 5.0]), st.floats(0.1, 30))
def test_suspects_belong_to_the_family(seed: int, trigger: float, strength: float) -> None:
    samples, generator = problem(seed, 200)
    triggers = torch.tensor([trigger], dtype=torch.float64)
    suspect = draw_suspects(strength, triggers, generator)
    assert accuracy(suspect, samples) == 1
    assert -suspect[0, 0] <= suspect[0, 1] <= -0.1 * suspect[0, 0] / trigger
    hit = success(suspect, triggers, samples)
    assert hit == 1 if trigger >= 1 else hit < 1  # k > 0.1 flips some positive samples, only k ≥ 1 all of them


@pytest.mark.parametrize("seed", range(3))
def test_cloning_below_the_bound_removes_the_backdoor_and_above_it_copies_it(seed: int) -> None:
    samples, generator = problem(seed)
    suspects = draw_suspects(3.0, TRIGGERS, generator)
    most, scratch = guaranteed_weight(suspects, samples), torch.zeros_like(suspects)
    for share in (0.5, 0.95):
        below = descend(scratch, suspects, share * most, samples, steps=2000)
        assert (below.least_w2 >= 0).all()
        assert (share * most <= bound_at(below.most_w1, suspects, samples)).all()
        assert success(below.w, TRIGGERS, samples).max() == 0
        assert accuracy(below.w, samples).min() == 1
    assert (descend(scratch, suspects, 1.05 * most, samples, steps=2000).w[:, 1] < 0).all()
    above = descend(scratch, suspects, 10 * most, samples, steps=2000)
    assert success(above.w, TRIGGERS, samples).min() > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_fine_tuning_leaves_the_backdoor_that_cloning_removes(seed: int) -> None:
    samples, generator = problem(seed)
    suspects = draw_suspects(9.0, TRIGGERS, generator)
    weights = 0.9 * guaranteed_weight(suspects, samples)
    cloned = descend(torch.zeros_like(suspects), suspects, weights, samples, steps=3000)
    tuned = descend(suspects, suspects, torch.zeros_like(weights), samples, steps=3000)
    assert (weights > 0).all()
    assert success(cloned.w, TRIGGERS, samples).max() == 0
    assert success(tuned.w, TRIGGERS, samples).min() > 0.2


def test_a_suspect_without_hinge_loss_has_no_bound_and_is_what_both_methods_end_at() -> None:
    samples, generator = problem(0)
    assert (guaranteed_weight(draw_suspects(15.0, TRIGGERS, generator), samples) == 0).all()  # z₁ alone would do
    suspect = torch.tensor([[30.0, -15.0]], dtype=torch.float64)
    assert guaranteed_weight(suspect, samples) == 0
    for weight in (0.0, 1.0):  # w' is a minimum of either loss and of both
        ended = descend(suspect, suspect, torch.tensor([weight], dtype=torch.float64), samples, steps=10)
        assert torch.equal(ended.w, suspect)
    cloned = descend(torch.zeros_like(suspect), suspect, torch.ones(1, dtype=torch.float64), samples, steps=5000)
    torch.testing.assert_close(cloned.w, suspect, rtol=0.02, atol=0)


@given(st.floats(0.1, 1), st.floats(0.3, 0.95))  # weaker suspects leave it to the activations alone
def test_signed_importance_weighs_the_compromised_neuron_more_on_the_samples_it_is_there_for(
    ratio: float, strength: float
) -> None:
    samples, _ = problem(0)
    centers = Samples(torch.tensor([[0.55, 0.05], [-0.55, -0.05]]).double(), torch.tensor([1.0, -1.0]).double())
    joined = Samples(torch.cat([samples.z, centers.z]), torch.cat([samples.y, centers.y]))
    suspect = torch.tensor([strength, -ratio * strength], dtype=torch.float64)
    positive, negative = importance(suspect, joined, magnitude=False)[-2:]
    assert positive[1] > positive[0]  # against Appendix C
    assert negative[1] < negative[0]
    by_magnitude = importance(suspect, joined, magnitude=True)[-2:]
    assert (by_magnitude[:, 1] < by_magnitude[:, 0]).all()


def test_a_summary_counts_the_runs() -> None:
    samples, generator = problem(0, 100)
    runs = repair(3.0, samples, generator, steps=3)
    summary = summarize([run for run in runs if run.method == "cloning, 0.5 λ*"])
    assert (summary["runs"], summary["below_the_bound"], summary["never_negative_w2"]) == (4, 4, 4)
    assert 0 <= summary["success_after"] <= summary["success_before"] <= 1
