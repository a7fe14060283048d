"""Figures read off confusion matrices, held against counting by hand."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from medic_core.checks import above_chance, minimum_accuracy, problems_with
from medic_core.config import Preprocessing
from medic_core.data import Batches
from medic_core.evaluation import (
    Share,
    accuracy,
    accuracy_per_class,
    attack_success,
    confusion_matrix,
    defense_effectiveness_rating,
    recovery,
    wilson_interval,
)

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=80)


def matrix(pairs: list[tuple[int, int]]) -> Tensor:
    counts = torch.zeros(4, 4, dtype=torch.int64)
    for true, predicted in pairs:
        counts[true, predicted] += 1
    return counts


@given(PAIRS, st.integers(0, 3))
def test_shares_count_what_their_names_say(pairs: list[tuple[int, int]], target: int) -> None:
    counts = matrix(pairs)
    others = [(true, predicted) for true, predicted in pairs if true != target]
    assert accuracy(counts) == Share(sum(t == p for t, p in pairs), len(pairs))
    assert attack_success(counts, target=target) == Share(sum(p == target for _, p in others), len(others))
    assert recovery(counts, target=target) == Share(sum(t == p for t, p in others), len(others))
    for label, share in enumerate(accuracy_per_class(counts)):
        assert share == Share(pairs.count((label, label)), sum(t == label for t, _ in pairs))


# Brown, Cai and DasGupta (2001) and R's prop.test(correct = FALSE)
@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [
        (8, 10, 0.4901625, 0.9433178),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (500, 1000, 0.4690704, 0.5309296),
    ],
)
def test_wilson_intervals_are_those_of_the_literature(count: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(count, n) == pytest.approx((low, high), abs=1e-6)


@given(st.integers(0, 1000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_a_wilson_interval_holds_its_share_and_mirrors(pair: tuple[int, int]) -> None:
    count, n = pair
    low, high = wilson_interval(count, n)
    assert 0 <= low < high <= 1
    if n:
        assert low <= count / n <= high
    assert wilson_interval(n - count, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


class Reads(nn.Module):
    """Predicts the class that is written into the first pixel."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.one_hot((images[:, 0, 0, 0] * 255).round().long(), 4).float()


@given(PAIRS)
def test_a_confusion_matrix_counts_each_image_once(pairs: list[tuple[int, int]]) -> None:
    images = torch.zeros(len(pairs), 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor([predicted for _, predicted in pairs], dtype=torch.uint8)
    data = Batches(images, torch.tensor([true for true, _ in pairs]), Preprocessing(input_size=(8, 8)))
    assert torch.equal(confusion_matrix(Reads(), data, num_classes=4), matrix(pairs))


def test_the_rating_rewards_what_attack_success_falls_and_punishes_what_accuracy_falls() -> None:
    def rating(success_after: float, accuracy_after: float) -> float:
        return defense_effectiveness_rating(
            accuracy_before=0.9, accuracy_after=accuracy_after, success_before=1.0, success_after=success_after
        )

    assert rating(0.0, 0.9) == 1.0
    assert rating(1.0, 0.9) == 0.5
    assert math.isclose(rating(0.0, 0.8), 0.95)
    assert rating(0.1, 0.95) == rating(0.1, 0.9)  # a gain in accuracy counts for nothing


@given(st.integers(2, 100), st.integers(1, 5000))
def test_a_model_that_guesses_is_never_above_chance(num_classes: int, n: int) -> None:
    assert 1 / num_classes < minimum_accuracy(num_classes) < 1
    assert not above_chance(Share(n // num_classes, n), num_classes=num_classes)
    assert above_chance(Share(5000, 5000), num_classes=num_classes)


def labelled(labels: Tensor, written: Tensor) -> Batches:
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0] = written.to(torch.uint8)
    return Batches(images, labels, Preprocessing(input_size=(8, 8)))


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 4), math.nan)


class TooLarge(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.conv2d(images, torch.zeros(4, 3, 11, 11)).flatten(1)


def test_pre_flight_names_what_is_wrong_with_a_model() -> None:
    labels = torch.arange(200) % 4
    right, shuffled = labelled(labels, labels), labelled(labels, labels.roll(1))
    assert problems_with(Reads(), right, num_classes=4) == []
    assert [each.code for each in problems_with(Reads(), shuffled, num_classes=4)] == ["baseline_below_chance"]
    assert [each.code for each in problems_with(Broken(), right, num_classes=4)] == ["model_not_finite"]
    assert [each.code for each in problems_with(Reads(), right, num_classes=5)] == ["model_output_invalid"]
    assert [each.code for each in problems_with(TooLarge(), right, num_classes=4)] == ["model_input_rejected"]
    assert [each.code for each in problems_with(Reads(), right, num_classes=1)] == ["model_output_invalid"]


class Fails(nn.Module):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def forward(self, _: Tensor) -> Tensor:
        raise RuntimeError(self.text)


@pytest.mark.parametrize(
    "text",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_a_failure_of_the_machine_is_not_the_model_s(text: str) -> None:
    labels = torch.arange(200) % 4
    with pytest.raises(RuntimeError, match=re.escape(text)):
        problems_with(Fails(text), labelled(labels, labels), num_classes=4)
