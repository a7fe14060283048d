"""Batches: every image once an epoch, the same for the same seed, and augmentation that does what it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from medic_core.config import Preprocessing, ScratchConfig
from medic_core.data import (
    Batches,
    _rectangles,
    _warp,
    _wave,
    augment,
    corrupt,
    cut,
    cut_evenly,
    cut_in_pairs,
    foreign_parts,
    neighbours,
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


@given(st.integers(2, 200), st.integers(2, 50))
def test_parts_of_mixed_batches_never_cut_neighbours_apart(count: int, size: int) -> None:
    sizes = cut_in_pairs(count, size)
    assert sum(sizes) == count
    assert min(sizes) >= 2
    assert max(sizes) <= max(size, 3)
    assert all(each % 2 == 0 for each in sizes[:-1])
    assert len(sizes) == 1 or count > size


def drawn(seed: int, make: Callable[[], Tensor]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def corrupted(share: float, seed: int, images: Tensor, preprocessing: Preprocessing) -> Tensor:
    return drawn(seed, lambda: corrupt(normalize(images, preprocessing), share, preprocessing))


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 2**20))
def test_corrupted_pixels_stay_in_the_range_of_pixels_and_repeat_under_the_same_seed(
    height: int, width: int, seed: int
) -> None:
    preprocessing = Preprocessing(color_order="BGR", value_range=(0.0, 255.0), mean=(100, 110, 120), std=(50, 60, 70))
    images = torch.rand(6, 3, height, width, generator=torch.Generator().manual_seed(seed))
    found = corrupted(0.8, seed, images, preprocessing)
    low, high = (normalize(torch.full((1, 3, 1, 1), pixel), preprocessing) for pixel in (0.0, 1.0))
    assert (found >= low - 1e-4).all()
    assert (found <= high + 1e-4).all()
    assert torch.equal(found, corrupted(0.8, seed, images, preprocessing))


def test_corruption_leaves_images_out_as_often_as_it_should() -> None:
    images = torch.rand(2000, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = (corrupted(0.6, 1, images, Preprocessing()) != images).flatten(1).any(dim=1)
    expected = 0.6 * (1 - 0.25**3 * 0.75)  # two rectangles, a wave, a warp
    assert changed.float().mean().item() == pytest.approx(expected, abs=0.03)


def test_rectangles_lie_within_the_image_anywhere_and_are_no_larger_than_a_quarter_of_its_sides() -> None:
    masks = drawn(0, lambda: _rectangles(torch.zeros(3000, 3, 16, 24), 1.0))[:, 0]
    heights, widths = masks.any(dim=2).sum(dim=1), masks.any(dim=1).sum(dim=1)
    assert {2, 4} <= set(heights.tolist()) <= {2, 3, 4}
    assert {2, 6} <= set(widths.tolist()) <= {2, 3, 4, 5, 6}
    assert torch.equal(masks.sum(dim=(1, 2)), heights * widths)
    assert masks.any(dim=0).all()


@given(st.integers(8, 96), st.integers(8, 96), st.integers(0, 2**20))
def test_a_warp_moves_each_pixel_a_little_and_leaves_the_images_that_are_not_chosen(
    height: int, width: int, seed: int
) -> None:
    rows = torch.arange(height).view(-1, 1).expand(height, width)
    columns = torch.arange(width).expand(height, width)
    places = torch.stack([rows, columns, torch.zeros(height, width)]).repeat(6, 1, 1, 1)
    chosen = torch.tensor([True, False] * 3).view(-1, 1, 1, 1)
    moved = drawn(seed, lambda: _warp(places, chosen)) - places
    assert (moved[::2, 0].abs() < 1.5 * height / 32).all()  # a bicubic field goes a little beyond its points
    assert (moved[::2, 1].abs() < 1.5 * width / 32).all()
    assert (moved[::2, 2] == 0).all()
    assert (moved[1::2] == 0).all()


def test_a_warp_bends_images_smoothly_and_each_in_its_own_way() -> None:
    ramp = torch.arange(64.0).expand(200, 3, 64, 64)
    moved = drawn(0, lambda: _warp(ramp, torch.ones(200, 1, 1, 1, dtype=torch.bool))) - ramp
    assert moved.abs().amax(dim=(1, 2, 3)).median() > 0.5
    assert moved.abs().amax(dim=(1, 2, 3)).max() > 1.5
    assert moved.diff(dim=2).abs().max() < 0.3  # from 2 pixels to one side to 2 to the other over 21
    assert len(moved.flatten(1).unique(dim=0)) == 200


def test_waves_go_every_way_at_any_pace_smooth_or_with_edges() -> None:
    waves = drawn(0, lambda: _wave(torch.zeros(4000, 3, 32, 32)))[:, 0]
    amplitude = waves.abs().amax(dim=(1, 2))
    assert 0.15 < amplitude.max() <= 0.2
    levels = torch.tensor([len(wave.unique()) for wave in waves])
    assert (levels <= 3).float().mean() == pytest.approx(0.5, abs=0.03)  # two values, and 0 where a sine is
    power = torch.fft.rfft2(waves[levels > 3]).abs()
    peak = power.flatten(1).argmax(dim=1)
    down, across = (torch.fft.fftfreq(32)[peak // 17] * 32).abs(), torch.fft.rfftfreq(32)[peak % 17] * 32
    turns = torch.hypot(down, across)
    for low, high in ((1, 2), (2, 4), (4, 8), (8, 17)):  # an octave is as likely as another
        assert ((turns >= low - 0.5) & (turns < high - 0.5)).float().mean() == pytest.approx(0.25, abs=0.1)
    assert (down > 2 * across).float().mean() > 0.15
    assert (across > 2 * down).float().mean() > 0.15


@given(st.integers(8, 48), st.integers(8, 48), st.integers(0, 2**20))
def test_foreign_parts_are_bands_from_an_edge_or_boxes_of_a_quarter_to_three_quarters(
    height: int, width: int, seed: int
) -> None:
    parts = drawn(seed, lambda: foreign_parts(torch.zeros(40, 3, height, width), 1.0))[:, 0]
    heights, widths = parts.any(dim=2).sum(dim=1), parts.any(dim=1).sum(dim=1)
    assert torch.equal(parts.sum(dim=(1, 2)), heights * widths)  # one rectangle each
    for sides, length in ((heights, height), (widths, width)):
        some = sides[sides < length]
        assert (some >= 0.25 * length - 1).all()
        assert (some <= 0.75 * length + 1).all()
    across, down = widths == width, heights == height
    assert not (across & down).any()
    assert (parts[across, 0].all(dim=1) | parts[across, -1].all(dim=1)).all()
    assert (parts[down, :, 0].all(dim=1) | parts[down, :, -1].all(dim=1)).all()


def test_each_image_gets_a_foreign_part_as_often_as_it_should_and_all_three_kinds_occur() -> None:
    parts = drawn(0, lambda: foreign_parts(torch.zeros(4000, 3, 16, 16), 0.3))[:, 0]
    some = parts[parts.flatten(1).any(dim=1)]
    assert len(some) / 4000 == pytest.approx(0.3, abs=0.03)
    across, down = some.any(dim=1).all(dim=1), some.any(dim=2).all(dim=1)
    for kind in (across, down, ~across & ~down):
        assert kind.float().mean() == pytest.approx(1 / 3, abs=0.05)


@given(st.integers(1, 50))
def test_neighbours_are_pairs_and_a_last_one_alone_is_its_own(count: int) -> None:
    other = neighbours(count, torch.device("cpu"))
    assert torch.equal(other[other], torch.arange(count))
    assert (other != torch.arange(count)).sum() == count - count % 2
    assert ((other - torch.arange(count)).abs() <= 1).all()
