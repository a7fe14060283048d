"""Batches: every image once an epoch, the same for the same seed, and augmentation that does what it says."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from medic_core.config import Preprocessing, ScratchConfig
from medic_core.data import (
    Batches,
    augment,
    cut,
    cut_evenly,
    normalize,
    stratified_holdout,
)

PLAIN = ScratchConfig(crop_padding=0, rotation_degrees=0, horizontal_flip=False, batch_size=8)


def numbered(count: int) -> Batches:
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).contiguous()
    return Batches(images, torch.arange(count), Preprocessing(input_size=(8, 8)))


@given(st.integers(2, 70), st.integers(2, 20), st.integers(0, 2**31 - 1), st.integers(0, 5))
def test_an_epoch_has_every_image_once_and_no_batch_of_one(count: int, size: int, seed: int, epoch: int) -> None:
    config = ScratchConfig(crop_padding=0, rotation_degrees=0, horizontal_flip=False, batch_size=size, seed=seed)
    batches = list(numbered(count).shuffled(config, epoch=epoch))
    assert len(batches) == numbered(count).steps(config)
    assert all(len(labels) > 1 for _, labels in batches)
    assert all(len(labels) <= size + 1 for _, labels in batches)
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == list(range(count))
    for images, labels in batches:
        torch.testing.assert_close(images[:, 0, 0, 0] * 255, labels.float())


def test_the_same_seed_and_epoch_give_the_same_batches_and_others_do_not(clean: Batches) -> None:
    def first(seed: int, epoch: int) -> torch.Tensor:
        return next(clean.shuffled(ScratchConfig(seed=seed, batch_size=8), epoch=epoch))[0]

    assert torch.equal(first(1, 2), first(1, 2))
    assert not torch.equal(first(1, 2), first(1, 3))
    assert not torch.equal(first(1, 2), first(2, 2))


def test_drawing_batches_leaves_the_global_random_state_alone(clean: Batches) -> None:
    before = torch.get_rng_state()
    list(clean.shuffled(ScratchConfig(), epoch=0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    pixels = torch.rand(40, 3, 6, 9)
    config = ScratchConfig(crop_padding=2, rotation_degrees=0, horizontal_flip=False)
    cropped = augment(pixels, torch.rand(40, 4), config)
    padded = torch.nn.functional.pad(pixels, [2] * 4)
    places = set()
    for image, source in zip(cropped, padded, strict=True):
        found = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if torch.equal(image, source[:, row : row + 6, column : column + 9])
        ]
        assert len(found) == 1
        places.update(found)
    assert len(places) > 10


@pytest.mark.parametrize("size", [(6, 6), (5, 5)])
def test_a_quarter_turn_moves_every_pixel_to_its_place(size: tuple[int, int]) -> None:
    pixels = torch.rand(4, 3, *size)
    config = ScratchConfig(crop_padding=0, rotation_degrees=90, horizontal_flip=False)
    fully = torch.ones(4, 4)  # (2 · 1 − 1) · 90°
    assert torch.equal(augment(pixels, fully, config), pixels.rot90(-1, (2, 3))) or torch.equal(
        augment(pixels, fully, config), pixels.rot90(1, (2, 3))
    )


def test_a_small_rotation_of_a_long_image_turns_it_by_that_angle() -> None:
    pixels = torch.zeros(1, 3, 41, 81)
    pixels[:, :, 20, :] = 1.0  # a horizontal line
    config = ScratchConfig(crop_padding=0, rotation_degrees=10, horizontal_flip=False)
    turned = augment(pixels, torch.ones(1, 4), config)[0, 0]
    ends = [turned[:, column].argmax().item() for column in (15, 65)]
    assert abs(abs(ends[1] - ends[0]) - 50 * math.tan(math.radians(10))) <= 1


def test_half_of_the_images_are_mirrored() -> None:
    pixels = torch.rand(400, 3, 4, 4)
    flipped = augment(pixels, torch.rand(400, 4), ScratchConfig(crop_padding=0, rotation_degrees=0))
    mirrored = [torch.equal(image, source.flip(2)) for image, source in zip(flipped, pixels, strict=True)]
    kept = [torch.equal(image, source) for image, source in zip(flipped, pixels, strict=True)]
    assert all(m or k for m, k in zip(mirrored, kept, strict=True))
    assert 150 < sum(mirrored) < 250


def test_pixels_become_the_models_input_as_the_preprocessing_says() -> None:
    pixels = torch.rand(2, 3, 4, 4)
    shown = Preprocessing(
        input_size=(8, 8), color_order="BGR", value_range=(-1.0, 1.0), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0)
    )
    expected = torch.stack([((2 * pixels[:, 2 - c] - 1) - (c + 1) / 10) / 2**c for c in range(3)], dim=1)
    torch.testing.assert_close(normalize(pixels, shown), expected)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.integers(0, 100))
def test_a_holdout_takes_its_share_of_every_class_and_never_all(labels: list[int], seed: int) -> None:
    given_labels = torch.tensor(labels)
    kept, held = stratified_holdout(given_labels, share=0.2, seed=seed)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    for label in set(labels):
        total = labels.count(label)
        out = int((given_labels[held] == label).sum())
        assert out == min(max(1, round(0.2 * total)), total - 1)
    again = stratified_holdout(given_labels, share=0.2, seed=seed)
    assert torch.equal(again[1], held)


@given(st.integers(1, 200), st.integers(1, 50))
def test_every_image_is_in_one_batch_and_none_is_alone(count: int, size: int) -> None:
    sizes = cut(count, size)
    assert sum(sizes) == count
    assert all(each == size for each in sizes[:-1])
    assert 1 <= sizes[-1] <= size + 1
    assert sizes[-1] > 1 or len(sizes) == 1 or size == 1


@given(st.integers(2, 200), st.integers(2, 50))
def test_micro_batches_are_as_even_as_can_be_and_none_is_of_one_image(count: int, size: int) -> None:
    sizes = cut_evenly(count, size)
    assert sum(sizes) == count
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(size, 3)
    assert len(sizes) == 1 or count > size
